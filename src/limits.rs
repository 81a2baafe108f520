//! Every bound of the program, each with its reason. Nothing that comes from outside (a length, a
//! count, a depth) is trusted beyond the number that stands here. One section a room.

// ---- config ----

/// Largest configuration file: a thousand models with every setting written out fit.
pub const CONFIG_FILE_BYTES: usize = 1 << 20;

/// Most files that a configuration is put together from, beside the agent's own.
pub const CONFIG_PARTS: usize = 256;

/// Most values in a configuration, with aliases unfolded.
pub const CONFIG_NODES: usize = 100_000;

/// Deepest nesting: the settings need four levels.
pub const CONFIG_DEPTH: usize = 16;

/// Most parser events that aliases may unfold to (a "billion laughs" file asks for billions).
pub const CONFIG_ALIAS_EVENTS: usize = 100_000;

/// Problems of a configuration that are shown; the rest is counted.
pub const CONFIG_PROBLEMS: usize = 50;

/// Longest path of a Unix socket: the kernel takes 107 bytes, and a name beside it is needed for a moment.
pub const SOCKET_PATH_BYTES: usize = 100;

/// Most sessions of one model: more than the cores of an edge box, and each costs memory.
pub const INSTANCES: usize = 64;

/// Most threads inside one operator.
pub const INTRA_OP_THREADS: usize = 256;

/// Longest queue of a model that may be asked for: each waiting request holds its body in memory.
pub const LONGEST_QUEUE: usize = 65_536;

/// Latency ratios to dense that a rung may be asked for lie above this: below it the calls of the operators
/// alone take longer, on every network that was measured.
pub const LEAST_RATIO: f64 = 0.05;

/// Most rungs of a ladder: each takes minutes to make and has to be told apart by measurement.
pub const LADDER_RATIOS: usize = 16;

// ---- hardware, shell: probe ----

/// Highest processor number plus one: Linux is built for at most 8,192.
pub const CPU_NUMBERS: usize = 8192;

/// Most bytes read of one file that the kernel shows; `/proc/cpuinfo` has 1.5 KiB a processor.
pub const KERNEL_FILE_BYTES: u64 = 4 << 20;

/// Most temperature sensors looked at.
pub const THERMAL_ZONES: usize = 64;

/// Most trip points of a sensor: the kernel's old bound was 12.
pub const TRIP_POINTS: usize = 16;

/// Most nested control groups looked at: systemd and a container runtime make about eight.
pub const CGROUP_DEPTH: usize = 32;

/// Most bytes of a file that says one thing of a PCI device.
pub const SYSFS_VALUE_BYTES: u64 = 256;

/// Bytes of the place for a vendor's answer: structures grow with the library, and the largest that any header
/// has today takes 34 KiB.
pub const VENDOR_ANSWER_BYTES: usize = 64 << 10;

/// Longest text of a vendor's library: names and versions have some tens of characters.
pub const VENDOR_TEXT_BYTES: usize = 256;

/// Most cards that a vendor's library may list, and devices in one card. Servers with 16 cards of two exist; an
/// edge box has one or two.
pub const VENDOR_CARDS: usize = 64;
pub const VENDOR_DEVICES_IN_CARD: usize = 8;

/// Seconds for which the box's speed is measured, all operators together.
pub const ROOFLINE_SECONDS: f64 = 2.0;

/// Bytes that are copied to measure memory, and how often: more than caches hold, and twice of it fits the
/// smallest boxes.
pub const ROOFLINE_COPY_BYTES: usize = 64 << 20;
pub const ROOFLINE_COPIES: usize = 10;

/// Largest file of such measurements that is read: one of each engine takes 2 KiB.
pub const ROOFLINE_FILE_BYTES: usize = 1 << 20;

/// Sweeps after which names, addresses and versions are asked again: some minutes, within which nobody
/// exchanges a driver unnoticed.
pub const IDENTITY_SWEEPS: u32 = 60;

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

// ---- protocol ----

/// Longest JSON part of an inference request. Numbers as text take up to four times their binary
/// size; a client with more to say uses the binary extension.
pub const INFER_JSON_BYTES: usize = 256 << 20;

/// Most bytes that the elements of one input may take that come as typed contents over gRPC: a varint of a
/// byte may stand for eight. A client with more to say sends raw contents.
pub const TYPED_CONTENTS_BYTES: usize = 32 << 20;

/// Outputs of at most this many bytes are copied behind what stands before them in a message; larger ones are
/// sent from where they lie. A frame of their own costs more than copying one of HTTP/2's smallest.
pub const JOINED_BYTES: usize = 16 << 10;

/// Most inputs, and most requested outputs, of one request. Exported networks with cached state
/// have a few hundred.
pub const REQUEST_TENSORS: usize = 4096;

/// Most axes of a tensor. Runtimes stop at 8 or 16.
pub const TENSOR_RANK: usize = 64;

/// Most bytes of a request that is made up to try a model: as much as one over HTTP may have where the
/// configuration says nothing.
pub const EXAMPLE_BYTES: u64 = HTTP_BODY_BYTES as u64;

/// Sizes that free axes of such a request are given, one after the other. 1 asks least of a model; 32 suits
/// those that halve an image five times, and the last one is nearer to what cameras bring.
pub const EXAMPLE_SIZES: [usize; 4] = [1, 32, 64, SYNTHETIC_FREE_AXIS];

/// A made-up request that takes longer is not followed by a larger one: the next may take a hundred times
/// as long, and as much memory, for which no model is to blame.
pub const EXAMPLE_QUICK: std::time::Duration = std::time::Duration::from_millis(5);

// ---- shell: slot, serve, metrics ----

/// Answered requests of a variant that are kept for windowed percentiles: forty seconds of one
/// hundred requests a second, 128 KiB.
pub const OBSERVATIONS: usize = 4096;

/// Requests that wait in one model's queue where the policy says nothing: more would wait longer
/// than any real-time client does.
pub const QUEUE_LENGTH: usize = 256;

/// How long after its arrival a request without a deadline counts as due: as long as one may take where the
/// policy says nothing. Those that are in a hurry go before it until then.
pub const QUEUE_PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// Most rows that may be run together: beyond it a batch is no faster a row on any box that was looked at, and
/// its inputs are copied once more.
pub const BATCH_ROWS: usize = 128;

/// Requests that are looked at for a batch, in their order: some tens of microseconds, in which nobody else
/// gets at the queue.
pub const BATCH_REACH: usize = 1024;

/// Random rows that a model is run on, alone and together, before its requests are.
pub const BATCH_CHECK_ROWS: usize = 4;

/// Repository commands of clients (load, unload) that wait for the agent.
pub const REPOSITORY_COMMANDS: usize = 16;

/// How long a client waits for a repository command; loading, trial and warm-up of a large model on
/// a slow box take minutes.
pub const REPOSITORY_COMMAND_SECS: u64 = 600;

/// Largest body of an HTTP request where the configuration says nothing: four seconds of 16 kHz
/// audio and a 4K camera frame as FP32 fit (100 MB).
pub const HTTP_BODY_BYTES: usize = 128 << 20;

/// Bytes of all request bodies that are held at one time: two of the largest.
pub const HTTP_BODIES_BYTES: usize = 256 << 20;

/// Largest body of a repository call: a few parameters.
pub const REPOSITORY_BODY_BYTES: usize = 64 << 10;

/// Open connections of one listener. Each costs some 20 KiB; an edge box has tens of clients.
pub const HTTP_CONNECTIONS: usize = 512;

/// How long a connection may stay idle, or take to send a request's head.
pub const HTTP_IDLE_SECS: u64 = 300;

/// How long a client may take none of an answer that waits for it. One that reads at all, over however slow a
/// link, takes some within this; one that never does holds a connection's place no longer.
pub const HTTP_WRITE_SECS: u64 = 60;

/// How long a client may take to send one body: the largest over a slow field link.
pub const HTTP_BODY_SECS: u64 = 60;

/// JSON bodies above this size are read on a thread that may block, so that a large request never
/// holds up the small ones. Below it the hand-over would cost more than the reading.
pub const JSON_INLINE_BYTES: usize = 64 << 10;

/// Open connections of a listener that speaks HTTP/2. One carries many calls at a time, and may have
/// [`HTTP2_CONNECTION_WINDOW`] in our memory before anybody looks at it.
pub const HTTP2_CONNECTIONS: usize = 128;

/// Calls at a time of one connection: more than any model's queue takes from a client that means well.
pub const HTTP2_STREAMS: u32 = 256;

/// Bytes of a call's body that may be under way before they are read: a camera's frame as 8-bit colours.
pub const HTTP2_STREAM_WINDOW: u32 = 512 << 10;

/// The same for all calls of a connection.
pub const HTTP2_CONNECTION_WINDOW: u32 = 1 << 20;

/// Largest frame that is taken: a request that fits into one is not copied before it is run.
pub const HTTP2_FRAME_BYTES: u32 = 256 << 10;

/// Bytes of a call's headers. gRPC's own clients stop at 8 KiB.
pub const HTTP2_HEADER_BYTES: u32 = 16 << 10;

/// Calls of a connection that its client may have ended before they were looked at. One that opens and ends
/// calls faster is sent away: it costs more than it can be served for.
pub const HTTP2_RESET_STREAMS: usize = 32;

/// Calls of a connection that may have ended for a client's errors; then it is sent away.
pub const HTTP2_ERROR_STREAMS: usize = 128;

/// Bytes of one answer that are handed to the connection at a time; the rest waits until the client takes it.
pub const HTTP2_SEND_BYTES: usize = 64 << 10;

/// How often a client that says nothing is asked whether it is still there, and how long it may take to say
/// so: a box that lost its power holds its connection's place no longer.
pub const HTTP2_PING_SECS: u64 = 60;
pub const HTTP2_PONG_SECS: u64 = 20;

/// How often a connection is looked at for answers that are not taken and for being idle.
pub const CONNECTION_CHECK_SECS: u64 = 5;

/// Requests of one stream that are under way: enough to keep a model busy while the next one comes.
pub const STREAM_REQUESTS: usize = 16;

/// Registered regions of shared memory; each holds a file open. A client has two, one to write and one to
/// read, or a ring of them a camera.
pub const SHARED_REGIONS: usize = 256;

/// Longest name of a region: as long as the name of the object behind it may be.
pub const SHARED_NAME_BYTES: usize = 255;

/// Inputs and outputs in shared memory above this many bytes together are copied on a thread that may block.
pub const SHARED_INLINE_BYTES: u64 = 256 << 10;
/// Spans that wait for the collector: some seconds of a few hundred requests each.
pub const SPANS_WAITING: usize = 4096;

/// Spans that are sent as one request, about half a MiB of JSON.
pub const SPANS_TOGETHER: usize = 1024;

/// How long spans wait for others to be sent with.
pub const SPANS_DELAY: std::time::Duration = std::time::Duration::from_secs(1);

/// How long a collector may take to answer before its spans count as lost.
pub const SPANS_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// How long the agent's end may wait for the last spans to be sent.
pub const SPANS_FLUSH: std::time::Duration = std::time::Duration::from_secs(2);

// ---- shell::engine ----

/// Most entries of a directory that are looked at in search of a library. `/usr/lib` of a full desktop
/// has some five thousand.
pub const DIRECTORY_ENTRIES: usize = 100_000;

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

// ---- governor ----

/// Fewest requests above the budget that break it; single ones may have met a page fault or a timer.
pub const BROKEN_REQUESTS: usize = 3;

/// Share of windows in which chance alone may make a budget that is just held look broken.
pub const BROKEN_CHANCE: f64 = 0.002;

/// Fewest observed requests from which a slowdown is taken.
pub const OBSERVED_MIN: usize = 5;

/// Most pieces that a window is cut into to tell a stall, which hits one or two, from a squeeze: a quarter of
/// a second each of a window of two.
pub const SLICES: usize = 8;

/// Fewest requests of such a piece.
pub const SLICE_REQUESTS: usize = 5;

/// Time in which half of a slowdown that is no longer seen is forgotten.
pub const SLOWDOWN_HALF_LIFE: std::time::Duration = std::time::Duration::from_secs(1);

/// Time over which the share of requests above the budget is averaged (its half-life): some seconds see
/// enough stalls.
pub const STALLED_HALF_LIFE: std::time::Duration = std::time::Duration::from_secs(4);

/// Time in which half of what a better variant is forgiven is forgotten: a box that stalls does so for tens of
/// seconds, and what breaks the budget later is taken seriously again.
pub const FORGIVEN_HALF_LIFE: std::time::Duration = std::time::Duration::from_secs(15);

/// Runs that a variant is judged by, when it is said to miss its promise. The fastest of them decides, so that
/// more would not convict sooner.
pub const PROMISE_RUNS: usize = 10;

/// How much longer than promised, times the slowdown that the variant before it showed, the fastest run of a
/// variant may take. Ratios are measured to a few per cent; a squeeze that still rises is the rest.
pub const PROMISE_MARGIN: f64 = 1.5;

/// How long a variant that seemed to miss its promise is not taken where the box may have been to blame:
/// longer than squeezes take to rise.
pub const PROMISE_HELD: std::time::Duration = std::time::Duration::from_secs(60);

/// Most doublings of the wait before another attempt to go up: 64 times the wait, some minutes.
pub const UPWARD_DOUBLINGS: u32 = 6;

/// Probations without a switch for which one failed attempt to go up is forgotten.
pub const FAILURE_FORGOTTEN: u32 = 4;

/// Fewest requests that break a budget at once, without being spread over the window, where all of the newest
/// quarter lie above it: a quarter of a second of forty a second.
pub const NEWEST_REQUESTS: usize = 10;

/// Share of its time from which on the sessions of a variant are taken to be busy all the time: beyond it small
/// bursts wait for one another.
pub const UTILISATION: f64 = 0.9;

/// How often the wait before an attempt to go up is doubled where the better variant would be busy all the
/// time: four times as long outlasts most bursts, and a client that only seems to ask for too much is found
/// out.
pub const CROWDED_DOUBLINGS: u32 = 2;

/// Stretch of time over which it is judged whether a box gets slower: long enough that a ramp of one per cent a
/// second stands out of the noise of runs.
pub const TREND_SPAN: std::time::Duration = std::time::Duration::from_secs(8);

/// Fewest moments of that: three seconds.
pub const TREND_POINTS: usize = 12;

/// Standard errors by which it must rise.
pub const TREND_CERTAIN: f64 = 3.0;

/// How far ahead a budget is looked after: as long as it takes to see, to swap and to be seen again.
pub const TREND_AHEAD: std::time::Duration = std::time::Duration::from_secs(3);

/// Most lines of a trace: three days of one model, four a second.
pub const TRACE_ROWS: usize = 1_000_000;

/// Most requests of a trace: each is simulated, at about a microsecond and a hundred bytes.
pub const TRACE_REQUESTS: u64 = 20_000_000;

/// Longest time that a trace tells of, seconds: a month, ten million looks of the governor.
pub const TRACE_SECONDS: f64 = 31.0 * 86_400.0;

/// Largest file of a trace that is read.
pub const TRACE_READ_BYTES: usize = 128 << 20;

/// Largest slowdown of a trace, and the inverse of the least: beyond it a clock was wrong.
pub const TRACE_SLOWDOWN: f64 = 1000.0;

/// Observations after which a rung whose agreement lies at the floor exactly would be withdrawn by chance once
/// on average, or later: a year at one every three seconds.
pub const SHADOW_ODDS: f64 = 1e7;

/// Fewest compared requests that a rung is judged by, whatever they say.
pub const SHADOW_LEAST: u64 = 16;

/// Observations whose mean is shown, and named as the reason.
pub const SHADOW_WINDOW: usize = 256;

/// Highest floor that live requests are held against: of one difference in a thousand nobody can say in time
/// that it was none of chance.
pub const SHADOW_STRICTEST: f64 = 0.999;

/// Least time between two requests of one model that run on dense as well.
pub const SHADOW_GAP: std::time::Duration = std::time::Duration::from_millis(100);

/// Rest after a run on dense, in lengths of that run: all of them take a fifth of one core at most.
pub const SHADOW_REST: u32 = 4;

/// Requests of which the explained variance is told together. Their own mean takes its part of the variance,
/// which is corrected for, and of fewer the correction would be guesswork.
pub const SHADOW_PACK: usize = 16;

/// Sets of shapes of which requests wait for one another.
pub const SHADOW_PACKS: usize = 8;

/// Bytes of outputs, dense's and the rung's, that may wait for one another: two segmentations of a megapixel
/// image.
pub const SHADOW_PACK_BYTES: usize = 16 << 20;

// ---- arrivals ----

/// Longest name of a model: fits a file name with a suffix and a metric's label.
pub const MODEL_NAME_BYTES: usize = 128;

// ---- shell: children ----

/// Longest line that is taken from a child's standard output.
pub const CHILD_LINE_BYTES: usize = 1 << 20;

/// Last words of a child on standard error that are kept for the reason.
pub const CHILD_SAID_BYTES: usize = 4096;

/// Most lines that are taken from a child: a build of an hour tells some ten thousand steps.
pub const CHILD_LINES: usize = 1_000_000;

/// Least memory that a child may take where its share of what the box has available is less: its own code
/// and that of ONNX Runtime start in 100 MiB.
pub const CHILD_MEMORY: u64 = 256 << 20;

/// Files that a child may hold open: a model's own are closed once they are mapped, libraries and pipes are
/// some tens.
pub const CHILD_FILES: u64 = 1024;

/// Largest file that a child may write: all weights of the largest model.
pub const CHILD_FILE_BYTES: u64 = EXTERNAL_DATA_BYTES;

/// Threads of a child, beyond those that its operators are given, that may be busy all the time.
pub const CHILD_SPARE_THREADS: usize = 1;

/// Memory that a child which reads a vendor's library may take of its own: such libraries map their logs and
/// queues, and runtimes that open a device more than drivers do.
pub const TELEMETRY_MEMORY: u64 = 1 << 30;

/// Processor time of such a child: thirty times what its sweeps should take.
pub const TELEMETRY_PROCESSOR: std::time::Duration = std::time::Duration::from_secs(120);

/// Sweeps after which such a child ends and the next begins: what a library leaks goes with it. An hour at the
/// usual interval.
pub const TELEMETRY_SWEEPS: u32 = 720;

/// How long such a child may live whatever the interval. Silence ends it long before.
pub const TELEMETRY_LONGEST: std::time::Duration = std::time::Duration::from_secs(30 * 86_400);

/// Waits before a library that failed or hung is read again: the first, doubled each time, and the longest.
pub const TELEMETRY_FIRST: std::time::Duration = std::time::Duration::from_secs(1);
pub const TELEMETRY_AGAIN_LONGEST: std::time::Duration = std::time::Duration::from_secs(300);

/// How often it is looked whether accelerators have come, where there were none: a card is plugged in, or its
/// driver loaded late.
pub const ACCELERATORS_LOOK: std::time::Duration = std::time::Duration::from_secs(60);

/// How long a command that ends waits for such a child beyond what a library may take: starting it, and ending
/// it where a driver does not let it go.
pub const TELEMETRY_END: std::time::Duration = std::time::Duration::from_secs(5);

/// Seconds of processor time that a child has left to end by itself once what it may take is used up.
pub const CHILD_LAST_SECS: u64 = 5;

/// Landlock's interface from which on it counts as confinement where that is insisted on: the first that keeps
/// files elsewhere from being cut short.
pub const LANDLOCK_ENOUGH: u32 = 3;

/// Parts of the memory that is available of which a build may take one: serving goes on beside it.
pub const BUILD_MEMORY_PARTS: u64 = 2;

/// The same for a trial: what a model needs beyond that it could not have in service either.
pub const TRIAL_MEMORY_PARTS: u64 = 1;

/// How often work may end for want of memory that the box did not have at the moment, or by a signal from
/// elsewhere, before it is held to be the cause itself: with the waits between, more than a minute.
pub const DOUBTFUL_TRIES: u32 = 5;

/// Waits before a load is tried again that failed through no fault of the file: the first, doubled each
/// time, and the longest.
pub const RELOAD_FIRST: std::time::Duration = std::time::Duration::from_secs(5);
pub const RELOAD_LONGEST: std::time::Duration = std::time::Duration::from_secs(600);

/// The same for a build, which takes a core for minutes.
pub const REBUILD_FIRST: std::time::Duration = std::time::Duration::from_secs(10);
pub const REBUILD_LONGEST: std::time::Duration = std::time::Duration::from_secs(3600);

// ---- shell: store ----

/// Quarantined variants that are remembered: a box sees a few in its life.
pub const QUARANTINE_ENTRIES: usize = 1024;

/// Damaged files and folders that are kept for a person to look at.
pub const DAMAGED_KEPT: usize = 16;

/// Ladders that are kept on disk; those in use always are. Each is about as large as three dense models.
pub const LADDERS_KEPT: usize = 32;

// ---- shell: watch, agent ----

/// Most files of a model directory that are looked at.
pub const REPOSITORY_FILES: usize = 100_000;

/// Levels of folders below the model directory: model, version, and two for external data.
pub const REPOSITORY_DEPTH: usize = 4;

/// The agent's turn: governor, status, watchdog. Four a second meet a budget again well within a second
/// of two requests that broke it.
pub const TICK: std::time::Duration = std::time::Duration::from_millis(250);

/// The same while there is nothing to serve, load or build: what is left to tell are the watchdog, for which
/// systemd waits thirty seconds, and the status.
pub const IDLE_TICK: std::time::Duration = std::time::Duration::from_secs(2);

/// How long the configuration's file must have rested before it is read again: programs that write a file in
/// its place do so within milliseconds of emptying it.
pub const CONFIG_REST: std::time::Duration = std::time::Duration::from_millis(200);

/// The same for a file that is empty or gone: nearly always that is a moment on the way to another one, and
/// read too early it would drop every budget.
pub const CONFIG_REST_EMPTY: std::time::Duration = std::time::Duration::from_secs(2);

/// How long after the first file event the directory is listed: a copy raises many events.
pub const LOOK_DELAY: std::time::Duration = std::time::Duration::from_millis(50);

/// Events that may wait for the agent. Each stands for work that it started itself.
pub const AGENT_EVENTS: usize = 256;

/// Share of a budget from which on a build makes place for serving.
pub const NEAR_BUDGET: f64 = 0.8;

/// Share of a budget below which a build that stood still goes on: so far below the other that the
/// build's own share of the box does not send it back at once.
pub const FAR_FROM_BUDGET: f64 = 0.6;

/// A build is paused no longer than this at a stretch, and then runs for at least the second time: on a
/// box that is always near its budgets it is the ladder that helps.
pub const BUILD_PAUSE: std::time::Duration = std::time::Duration::from_secs(5);
pub const BUILD_RUN: std::time::Duration = std::time::Duration::from_secs(15);

/// Bytes of live requests that are kept of one model, in memory and on disk: 53 colour images of 224
/// pixels a side, or 512 of 73. Eight images are enough for a refit that beats every other repair.
pub const RESERVOIR_BYTES: usize = 32 << 20;

/// Samples of live requests from which on a ladder is worth building: as many as the figures in the
/// documentation were measured with.
pub const RESERVOIR_ENOUGH: usize = 128;

/// Samples out of which the kept ones are drawn before that ends: half an hour of 30 requests a second,
/// several days of one every few seconds.
pub const RESERVOIR_SEEN: u64 = 65_536;

/// Wait before a rung that failed in service may stand by again.
pub const FAULT_WAIT: std::time::Duration = std::time::Duration::from_secs(60);

/// Failures in service, each on another probation, that convict a rung for good. One may be the doing of the
/// request: whoever sends it must not be able to take rungs away from everybody else.
pub const FAULTS_TO_CONVICT: u32 = 3;

/// How long the agent waits at its start for files that are still being written before it counts as ready.
pub const READY_PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// Bytes of a file of a recorded trace, from which on another one is begun, and how many are kept: 64 MiB,
/// three days of one model that is asked without a pause.
pub const TRACE_FILE_BYTES: u64 = 8 << 20;
pub const TRACE_FILES: usize = 8;

/// Lines of a trace, all models of one moment in each, that may wait for the disk: half a minute.
pub const TRACE_WAITING: usize = 128;

/// Runs of a variant in its trial.
pub const TRIAL_RUNS: usize = 20;

/// Memory that must stay available on the box when a variant is loaded beside the one in service.
pub const MEMORY_RESERVE: u64 = 256 << 20;

/// Memory of a further session whose weights are lent: 11 MB were measured for a sentence encoder of 90 MB;
/// the rest is for the activations of larger inputs.
pub const SESSION_BYTES: u64 = 32 << 20;

/// Lines of the process's own map of memory that are read: some thousand mappings of 24 lines.
pub const SMAPS_LINES: usize = 100_000;

/// Bytes that must stay free on the disk of the state directory when weights are put there: what is
/// acknowledged to clients and operators has to find room.
pub const DISK_RESERVE: u64 = 256 << 20;

/// Largest request and answer together, bytes of their tensors, that is run on dense as well; one may wait and
/// one run for each model.
pub const SHADOW_REQUEST_BYTES: usize = 8 << 20;

/// Share of a budget up to which there is time for comparisons. A rung that fits its budget with the usual
/// margin of 1.1 takes 0.91 of it.
pub const SHADOW_SLACK: f64 = 0.95;

/// How long dense stays loaded for comparisons after the last rung has left service: a model at the edge of its
/// budget goes to and fro within this time.
pub const SHADOW_KEEP: std::time::Duration = std::time::Duration::from_secs(60);

/// Wait before dense is loaded for comparisons again where there was no room for it, or somebody needed the
/// room.
pub const SHADOW_RETRY: std::time::Duration = std::time::Duration::from_secs(60);

// ---- shell: supply ----

/// Largest library that is taken out of a wheel; providers for accelerators reach some hundred MB.
pub const LIBRARY_BYTES: u64 = 1 << 30;
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
