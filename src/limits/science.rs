//! Bounds of what reads, analyses and prunes networks.

// ---- onnx ----

/// Largest model file that is decoded. ONNX itself stops at 2 GiB a protobuf; weights beyond that
/// live in external data files, which have their own bound.
pub const MODEL_FILE_BYTES: u64 = 2 << 30;

/// Largest total of one model's external data: what the largest edge boxes hold in memory.
pub const EXTERNAL_DATA_BYTES: u64 = 64 << 30;

/// Most nodes of a graph. The largest exported networks have tens of thousands.
pub const GRAPH_NODES: usize = 1_000_000;

/// Most elements of one axis that may be tracked as channels. Vocabularies reach a quarter of a million.
pub const CHANNELS: usize = 1 << 20;

/// Fewest bytes of a constant that is read from another one with the same contents: below it the saving is
/// not worth a file that differs.
pub const SHARED_BYTES: usize = 1024;

/// Fewest bytes of a constant that sessions hold together: eight pages, so that what the last one is not
/// filled with stays small, and each takes a mapping and an entry of its own.
pub const LENT_BYTES: usize = 32 << 10;

// ---- shell::engine ----

/// Most entries of a directory that are looked at in search of a library. `/usr/lib` of a full desktop
/// has some five thousand.
pub const DIRECTORY_ENTRIES: usize = 100_000;

/// Largest library of an execution provider: those of vendors have some hundred megabytes, kernels included.
pub const PLUGIN_BYTES: u64 = 2 << 30;

/// Most segments of a library's file that are looked at; linkers make some ten.
pub const ELF_SEGMENTS: usize = 256;

/// Most bytes of its dynamic section: 16 for each library that it needs, and some tens beside.
pub const ELF_DYNAMIC_BYTES: usize = 64 << 10;

/// Longest list of folders in it: four paths of the longest kind that the kernel takes.
pub const ELF_PATHS_BYTES: usize = 16 << 10;

/// Most devices of one library that are looked at: more than a box has slots.
pub const PLUGIN_DEVICES: usize = 256;

/// Most kinds of operators that a report of where they run names for one provider: networks have some tens.
pub const PLACED_KINDS: usize = 64;

/// Most providers in it: one is asked for, and the CPU's is always there.
pub const PLACED_PROVIDERS: usize = 8;

/// Runs of a model that are profiled for it, after the first.
pub const PROFILED_RUNS: usize = 5;

/// Largest profile that is read: some 300 bytes for every operator and run.
pub const PROFILE_BYTES: u64 = 64 << 20;

/// Most shapes that a trial lets a provider compile: each may take minutes, and stays in the device's memory.
pub const COMPILED_SHAPES: usize = 32;

/// Timed runs of each of them but the first, of which a median is told.
pub const SHAPE_RUNS: usize = 5;

/// Deepest folder of compiled graphs that is looked into.
pub const COMPILED_DEPTH: usize = 8;

/// Largest distance of a provider's answers from the CPU's, as a share of those: beyond it they have no more to
/// do with each other than answers of nothing but zeros. Half precision stays below a hundredth.
pub const PROVIDER_DIFFERENCE: f64 = 1.0;

/// Longest name of an execution provider: the binding of ONNX Runtime keeps it in 128 bytes, a dot included.
pub const PROVIDER_NAME_BYTES: usize = 127;

/// Constants with more elements than this are not given to the runtime when it infers shapes: shapes,
/// axes, pads and sizes are small, weights are not.
pub const SHAPE_CONSTANT_ELEMENTS: u64 = 1024;

/// Outputs below this many bytes are copied out of the runtime's memory; larger ones stay in it until
/// they are dropped. Below a page the bookkeeping costs more than the copy.
pub const COPIED_OUTPUT_BYTES: usize = 4096;

// ---- shell::npz ----

/// Most arrays of an archive: a model has tens of inputs at most.
pub const NPZ_ARRAYS: usize = 1024;

/// Most bytes of all arrays of an archive together, uncompressed. 512 calibration images of 1024×1024×3
/// floats are 6 GiB.
pub const NPZ_BYTES: u64 = 8 << 30;

/// Longest header of an array: a type, an order and a shape.
pub const NPY_HEADER_BYTES: usize = 64 << 10;
// ---- coupling ----

/// Most indices of all axes of all values that are tracked; axes beyond are treated as of unknown length.
pub const ATOMS: usize = 1 << 28;

/// Most nodes of a residual branch that may be removed as a whole.
pub const BLOCK_NODES: usize = 256;

// ---- surgery ----

/// Most bytes of one value that are kept over all calibration samples. A value that would take more is known
/// of the first samples only: it is large since each sample has many positions, which are rows enough.
pub const VALUE_BYTES: usize = 32 << 20;

/// Samples of which every value is known, however large it is: enough to fit on some and judge by others.
pub const VALUE_SAMPLES: usize = 20;

/// Rows of calibration data that one fit draws at least, and rows an unknown. On the networks that were
/// measured, twice as many change nothing, half as many nearly nothing; 1,024 collapse.
pub const ROWS_PER_FIT: usize = 8_192;
pub const ROWS_PER_UNKNOWN: usize = 10;

/// Samples below which a covariance is held against how far it differs from sample to sample. The figures in
/// the documentation come from 128 and stand without it.
pub const FEW_SAMPLES: usize = 32;

/// Most bytes that all such rows together would take: of an operator with more than some 1,800 columns fewer
/// are drawn, still half a dozen an unknown up to 2,300 and thousands in any case.
pub const FIT_BYTES: usize = 128 << 20;

/// Most bytes of such rows that are held: more are made from the values again whenever they are asked for.
pub const HELD_ROWS_BYTES: usize = 32 << 20;

// ---- ladder ----

/// Narrowest side of an operator that may be put in two of lower rank: below it the second operator costs what
/// the smaller products save.
pub const LOW_RANK_NARROWEST: usize = 64;

/// Longest smaller side of such an operator: its decomposition holds some squares of it in f64 (32 MiB each)
/// and takes some seconds.
pub const LOW_RANK_SIDE: usize = 2048;

/// Largest share of an operator's products that its two factors may multiply: nearer to all of them nothing
/// is gained, whatever a measurement says.
pub const LOW_RANK_SHARE: f64 = 0.8;

/// Most bytes of the directions that all operators' factors are made from; those beyond it stay in one.
pub const LOW_RANK_BYTES: usize = 256 << 20;

/// Least cosine between the weights of two layers of which one may read the other's: below it a scale leaves an
/// error of 0.6 of the layer on inputs that are all alike.
pub const SUBSTITUTE_COSINE: f64 = 0.8;

/// Substitutes that are measured for one layer, the most alike first.
pub const SUBSTITUTES: usize = 4;

/// Largest squared error, relative to the variance of a layer's output, of a substitution that is tried.
pub const SUBSTITUTE_ERROR: f64 = 0.05;

/// Most substitutions that are tried in one rung: each is a run over the held-out samples.
pub const SUBSTITUTIONS_TRIED: usize = 16;

/// Squared difference of two forms of one model, relative to the outputs' squares, up to which they compute the
/// same: a dozen layers of 16-bit floats, which round by 2⁻¹¹, stay well below a third of a percent.
pub const SAME_SQUARES: f64 = 1e-5;

/// Most that a rung's quality and its explained variance may fall by all substitutions together: what a smaller
/// file is worth, and below what two calibrations differ by.
pub const SUBSTITUTION_FALL: f64 = 0.005;

/// Most choices of one item of the allocation: as many steps of saving as its result is known to.
pub const ITEM_CHOICES: usize = 512;

/// Samples that run through a network at once while it is analysed: bounds the memory of activations.
pub const CALIBRATION_BATCH: usize = 32;

/// Most bytes of inputs of such a batch, where it holds more than one sample: inside a network values are some
/// ten to fifty times as large as images, and a runtime holds several of them.
pub const CALIBRATION_BATCH_BYTES: usize = 4 << 20;

/// Most calibration samples that are used; more change nothing.
pub const CALIBRATION_SAMPLES: usize = 512;

/// Size of a free axis of an input for which neither samples nor a size were given. Divisible by 32, as
/// detectors ask.
pub const SYNTHETIC_FREE_AXIS: usize = 320;

/// Fewest and most rounds in which latencies are compared.
pub const TIMING_ROUNDS_MIN: usize = 15;
pub const TIMING_ROUNDS_MAX: usize = 400;

/// Most rescorings of a group while its channels are ranked: wide groups lose several channels at a time.
pub const SELECTION_STEPS: usize = 96;

/// Largest file of importances that is read: a number of twenty digits for each channel of the widest networks.
pub const IMPORTANCE_BYTES: usize = 64 << 20;

/// Most input columns of an operator whose whole covariance takes part in ranking: it and its inverse hold the
/// square of this in f64.
pub const SELECTION_COLUMNS: usize = 4_800;

/// Most blocks that the columns of a wider operator are ranked in: what it loses is overstated up to so many
/// times, and beyond that says nothing.
pub const SELECTION_BLOCKS: usize = 8;

/// Most bytes of cut variants of one part of a network that are loaded and timed at one time, dense not
/// counted.
pub const SEGMENT_BYTES: u64 = 256 << 20;

/// Seconds for which one variant of a part of a network is timed: a median over some hundred runs of the
/// small parts, a dozen of the large ones.
pub const SEGMENT_SECONDS: f64 = 0.03;

/// Engines whose latencies are kept beside one another: a box has one or two providers, at a few numbers of
/// threads, before and after an update of the runtime.
pub const LATENCY_ENGINES: usize = 8;

/// Parts of networks whose latencies are kept for one engine, 0.3 KiB each: a network has some ten to a
/// hundred that differ.
pub const LATENCY_SEGMENTS: usize = 4096;

/// How long measured latencies may wait to be written: what is lost when the box stops is measured again.
pub const LATENCY_UNSAVED: std::time::Duration = std::time::Duration::from_secs(2);

/// Prices of a removed block at which the first plans of a rung are made, as shares of its own loss: all
/// of it, as if nothing made up for it, down to nearly nothing.
pub const REMOVED_PRICES: [f64; 3] = [1.0, 0.3, 0.1];

/// Share of dense's variance that a variant must explain for no further plan to be tried. On the networks
/// that were measured accuracy was within its noise of dense's from here on.
pub const EXPLAINED_ENOUGH: f64 = 0.98;

/// Further plans that are tried for a rung unless the caller says otherwise. Each is measured, repaired and
/// compared: seconds for a small network, minutes for a large one.
pub const PLAN_TRIALS: usize = 6;

/// Multiply-adds for which variants of one rung are built unless the caller says how many are to be tried: a
/// minute or two of one core. Small networks are through with all of their trials long before.
pub const RUNG_WORK: f64 = 5e12;

/// How often a plan is corrected by measuring the whole model.
pub const PLAN_CORRECTIONS: usize = 8;

/// A measured ratio this near (relatively) to the one that was asked for is not corrected further: two
/// measurements of the same variant differ by as much.
pub const RATIO_GOOD_ENOUGH: f64 = 0.015;

/// A rung whose measured ratio is further off (relatively) is not what was asked for.
pub const RATIO_TOLERANCE: f64 = 0.06;

/// How often a rung is planned anew whose ratio, measured once more after it was chosen, is not what was
/// asked for: the first correction takes off what the choice was lucky by, the second what a step of the
/// box's widths left over.
pub const PROMISE_CORRECTIONS: usize = 2;

/// Plans inside the last rung's that are built for a rung at most, beyond those that are tried anyway: a third
/// of a search's builds.
pub const NESTED_TRIALS: usize = 3;

/// Error of a rung that nests in the one before, as a multiple of that of the best one, up to which it is
/// taken: less cannot be told apart. The error is a mean over some hundred held-out samples at most, which is
/// known to about a tenth where they differ by as much as they err, and it is weighed with the cube of two
/// measured ratios, each uncertain by [`RATIO_GOOD_ENOUGH`]: another six per cent.
pub const NESTED_ERROR: f64 = 1.1;

/// Bisections that look for what can be reached above the quality floor.
pub const FLOOR_BISECTIONS: usize = 3;

/// Part of the memory that is available which the values of a network on its calibration samples may
/// take: a quarter, since serving goes on beside.
pub const ACTIVATION_SHARE: u64 = 4;

/// Most bytes of made-up samples of one input: 32 colour images of 3,300 pixels a side.
pub const SYNTHETIC_BYTES: u64 = 4 << 30;

/// Made-up samples: they tell little, so few do.
pub const SYNTHETIC_SAMPLES: usize = 32;

// ---- spectra ----

/// Longest small side of an operator's matrix whose spectrum is computed: 8192 takes some 512 MiB and
/// about two minutes of one core.
pub const GRAM_SIDE: usize = 8192;

/// Longest small side for which a noisy tail is computed again by decomposition, at about three times the
/// cost of the Gram matrix: below it that is a few milliseconds.
pub const EXACT_SIDE: usize = 256;

/// Longest side of a symmetric matrix that is reduced to tridiagonal form one reflection at a time: the half
/// that is read, 2.3 MB, about fits a second-level cache. Beyond it, reduction in blocks is faster.
pub const CACHED_SIDE: usize = 768;

/// Farthest that a layer's state may have moved, radians, while an earlier version's spectrum stands in for its
/// own: what the report says of it then holds to about 2 %.
pub const LENT_DRIFT: f64 = 0.02;

/// Longest small side of the matrices that are diagonalised side by side. 16 covers kernels up to 4×4;
/// beyond it the iteration's cost grows faster than that of a decomposition.
pub const TINY_SIDE: usize = 16;

/// Most channels of a value whose correlations are kept: 4096² numbers of 8 bytes are 128 MiB.
pub const RESPONSE_CHANNELS: usize = 4096;

/// Most bytes of second moments that grow at a time (one value may exceed it alone).
pub const RESPONSE_BYTES: u64 = 256 << 20;

/// Most further outputs of one pass over the calibration samples: bounds the activations that are held
/// at a time.
pub const RESPONSE_OUTPUTS: usize = 32;

/// Most positions of one sample that count towards correlations: neighbours in an image say nearly the
/// same, further samples say more.
pub const RESPONSE_POSITIONS: usize = 1024;

// ---- redundancy ----

/// Distance up to which a report lists pairs of channels, radians: beyond it the best substitute errs by
/// half of the channel (sin 0.52 = 0.5).
pub const REPORT_REACH: f64 = 0.52;

/// Most pairs of one layer that a report lists.
pub const REPORT_EDGES: usize = 2000;

/// Most channels whose correlation matrix is decomposed for the report: about two seconds.
pub const DIRECTION_CHANNELS: usize = 2048;

/// Most pairs of layers that are compared: each is a product of calibration rows with two weights and a
/// decomposition of outputs × outputs.
pub const LAYER_PAIRS: usize = 128;

/// Rows of calibration data that layers are compared on.
pub const LAYER_PAIR_ROWS: usize = 2048;

/// Widest input (columns of the matrix) of layers that are compared on data: keeps their rows below
/// 36 MiB a layer.
pub const LAYER_PAIR_COLUMNS: usize = 4608;

/// Layers whose rows are gathered in one pass over the samples: at most 300 MiB at a time.
pub const LAYER_PAIR_PASS: usize = 8;

// ---- shell: spectra cache ----

/// Most bytes of kept spectra and reports. A spectrum takes 0.2 to 64 KiB, the report of a layer's channels
/// up to 60: some thousand layers.
pub const SPECTRA_CACHE_BYTES: u64 = 64 << 20;

/// Most bytes of the reports of one model's channels that are kept; those of further layers are made again.
/// Not so many that one model puts out all others.
pub const CHANNEL_REPORTS_BYTES: usize = 12 << 20;

/// A kept result that was used within this time is not marked as used again: it would cost as much as reading
/// it.
pub const SPECTRA_CACHE_USED_SECS: u64 = 60;

/// A temporary file of the cache older than this was left by a process that died.
pub const SPECTRA_CACHE_STALE_SECS: u64 = 3600;

// ---- redundancy: the page ----

/// Layers on the page of a report; further ones are in the JSON.
pub const PAGE_LAYERS: usize = 2000;

/// Points of all spectra on the page: 128 each up to 400 layers, 20 bytes each.
pub const PAGE_POINTS: usize = 50_000;

/// Pairs of channels of all layers on the page, 20 bytes each.
pub const PAGE_EDGES: usize = 40_000;

/// Longest name on the page, characters.
pub const PAGE_NAME: usize = 160;
