//! Bounds of requests, of the sessions that answer them, and of the governor.

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
pub const EXAMPLE_SIZES: [usize; 4] = [1, 32, 64, super::SYNTHETIC_FREE_AXIS];

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

/// How long a connection that waits for a request is kept open once the server stops: one that is on its way
/// already is answered, and told that it was the last. As long as a request takes over a slow link.
pub const HTTP_LINGER: std::time::Duration = std::time::Duration::from_millis(500);

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

/// How long a client may take for TLS's handshake: four ways over a satellite, and a slow processor's
/// signature. One that says nothing holds a connection's place no longer.
pub const TLS_HANDSHAKE: std::time::Duration = std::time::Duration::from_secs(10);

/// Clients that are listed by a name. Each request is held against all of them.
pub const ACCESS_ENTRIES: usize = 64;

/// Shortest token: what is shorter can be guessed, and 16 letters are what `openssl rand -base64 12` makes.
pub const TOKEN_LEAST_BYTES: usize = 16;

/// Longest token: half of what the headers of a call may have.
pub const TOKEN_BYTES: usize = 4096;

/// Longest name in a client's certificate that is listed: SPIFFE's are the longest, of at most 2,048 bytes.
pub const CERTIFICATE_NAME_BYTES: usize = 2048;

/// Names of one certificate that are looked at.
pub const CERTIFICATE_NAMES: usize = 64;

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
