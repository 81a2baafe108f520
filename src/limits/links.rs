//! Bounds of the link to the fleet's broker.

use std::time::Duration;

// ---- fleet: reported, topics; shell: links ----

/// Largest message of a broker that is taken: a bundle, and its topic beside it.
pub const LINK_MESSAGE_BYTES: usize = (1 << 20) + (64 << 10);

/// What a node may report on average, bytes a second: half of the hundred that idle traffic has, the rest being
/// for acknowledgements and keepalive.
pub const LINK_REPORT_RATE: f64 = 50.0;

/// What it may report at once after a silence, and largest report: a few dozen models with all that is told of
/// each.
pub const LINK_REPORT_BURST: usize = 32 << 10;

/// Counted for each message beside its body: its topic, headers and acknowledgement.
pub const LINK_OVERHEAD_BYTES: usize = 128;

/// Least time between two reports: what changes within it is told together.
pub const LINK_REPORT_GAP: Duration = Duration::from_secs(1);

/// Least time between two reports of which only measured figures are new.
pub const LINK_FIGURES_GAP: Duration = Duration::from_secs(30);

/// Oldest that the figures of a retained report may be while newer ones are known.
pub const LINK_SNAPSHOT_AGE: Duration = Duration::from_secs(600);

/// What became of bundles lately: a node that was away for weeks tells of so many.
pub const LINK_HISTORY: usize = 16;

/// Longest reason in a report, bytes.
pub const LINK_WHY_BYTES: usize = 512;

/// Most problems and devices that a report names.
pub const LINK_NAMED: usize = 16;

/// Two lost ones in a row are noticed in three minutes; routers forget idle connections after five.
pub const LINK_KEEP_ALIVE: Duration = Duration::from_secs(60);

/// For a TCP connection, TLS and the broker's answer together, over a satellite too.
pub const LINK_CONNECT: Duration = Duration::from_secs(20);

/// First and largest bound of the random time before a further attempt. A thousand nodes that lost a broker at
/// once come back over the first seconds; a node that is away for weeks asks every two and a half minutes on
/// average.
pub const LINK_BACKOFF: Duration = Duration::from_secs(1);
pub const LINK_BACKOFF_MOST: Duration = Duration::from_secs(300);

/// A connection that held for so long was a good one: the next attempt is the first again.
pub const LINK_STEADY: Duration = Duration::from_secs(30);

/// Requests to the client that may wait: subscriptions, presence and one report.
pub const LINK_REQUESTS: usize = 16;

/// For the words of farewell to a broker.
pub const LINK_FAREWELL: Duration = Duration::from_secs(2);

/// Bundles that were sent and not answered yet, of which it is remembered that they are news: a group each, and
/// all, pushed within the seconds that an answer takes.
pub const LINK_SENT: usize = 64;

/// Bundles that wait for the agent. A link that cannot hand one over reads no further.
pub const LINK_BUNDLES: usize = 16;

/// Largest file of certificates, a key, a password or a token.
pub const SECRET_BYTES: usize = 256 << 10;

/// Most nodes that an operator's commands follow.
pub const LINK_NODES: usize = 100_000;

/// An operator's command has heard all that a broker retains once nothing came for so long.
pub const LINK_QUIET: Duration = Duration::from_millis(1500);

/// Messages that wait for an operator's command: all that a broker retains for its nodes comes before the
/// answer to the subscription, perhaps.
pub const LINK_HEARD: usize = 2 * LINK_NODES;

/// Before a bundle that could not be put into the inbox is tried again.
pub const LINK_INBOX_AGAIN: Duration = Duration::from_secs(10);

// ---- fleet: polling; shell: links ----

/// For a whole question to a server of bundles: the largest bundle over the slowest line that is in use.
pub const LINK_POLL_ANSWER: Duration = Duration::from_secs(120);

/// The first question comes within this time of the start, at random: a plant whose boxes start together does
/// not ask in one moment.
pub const LINK_POLL_FIRST: Duration = Duration::from_secs(10);

/// Share by which the time between two questions is longer or shorter, at random.
pub const LINK_POLL_JITTER: f64 = 0.1;

/// Longest that a server may ask to be left alone.
pub const LINK_POLL_AWAY: Duration = Duration::from_secs(3600);

/// Longest word by which a server knows its own answer again.
pub const LINK_POLL_TAG_BYTES: usize = 1024;
