//! Bounds of what a fleet sends.

// ---- fleet ----

/// Most signatures of a bundle, and most keys that are trusted at a time: a team's people and its build
/// machines.
pub const FLEET_SIGNATURES: usize = 16;
pub const FLEET_KEYS: usize = 16;

/// Largest signature, its two comments included: minisign's own takes some 300 bytes and bounds comments to
/// 1 and 8 KiB, of which nobody needs more than a line.
pub const FLEET_SIGNATURE_BYTES: usize = 2048;

/// Largest bundle: a configuration of its own largest size, and the signatures.
pub const FLEET_BUNDLE_BYTES: usize =
    super::CONFIG_FILE_BYTES + FLEET_SIGNATURES * FLEET_SIGNATURE_BYTES;

/// Largest file of a public key: two lines.
pub const FLEET_KEY_BYTES: usize = 4096;

/// Most models in a bundle: a box serves a few.
pub const FLEET_MODELS: usize = 64;

/// Most nodes that a bundle names one by one; larger groups have a label.
pub const FLEET_NODES: usize = 10_000;

/// Most labels of a node, and of a selector with the values of each.
pub const FLEET_LABELS: usize = 64;

/// Longest name of a node, label or value: fits a metric's label and a topic's level.
pub const FLEET_NAME_BYTES: usize = 128;

/// Longest salt of a staged roll-out: a word.
pub const FLEET_SALT_BYTES: usize = 128;

/// Longest address of an artifact: what servers take.
pub const FLEET_URL_BYTES: usize = 2048;

/// Most servers that are shown who the box is: a depot, a registry, and whoever gives out its tokens.
pub const FLEET_HOSTS: usize = 16;

/// Largest artifact: a model and its weights in one file, which the format bounds to 2 GiB.
pub const FLEET_ARTIFACT_BYTES: u64 = 2 << 30;

/// Most files beside a model's own, and the largest of them: exporters write weights into one file or a few,
/// and a box that held more than that at a time would be none for the edge.
pub const FLEET_FILES: usize = 64;
pub const FLEET_FILE_BYTES: u64 = 64 << 30;

/// How often an artifact is fetched again, each time later, before its bundle is left alone until it comes
/// again: with the waits between, a day.
pub const FLEET_FETCH_TRIES: u32 = 30;

/// Waits before that: the first, doubled each time, and the longest.
pub const FLEET_FETCH_FIRST: std::time::Duration = std::time::Duration::from_secs(5);
pub const FLEET_FETCH_LONGEST: std::time::Duration = std::time::Duration::from_secs(3600);

/// Wait before what could not be undone or written is tried again.
pub const FLEET_AGAIN: std::time::Duration = std::time::Duration::from_secs(10);

/// Starts of the agent that a bundle may cause or see before it has served its probation: one that keeps the
/// agent from running for that long is taken back. Operators restart agents too, seldom three times in ten
/// minutes.
pub const FLEET_STARTS: u32 = 3;

/// Requests of a model from which on its share of failures says something, and the share that is too large.
pub const FLEET_REQUESTS: u64 = 20;
pub const FLEET_FAILURES: f64 = 0.05;

/// Looks at a model's budget, a second apart, from which on they say something; it must be kept in half of
/// them.
pub const FLEET_LOOKS: u32 = 20;

/// How long a server of artifacts may be silent.
pub const FLEET_SILENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// Addresses that a server of artifacts may send one on to, one after the other.
pub const FLEET_REDIRECTS: u32 = 3;

/// Largest answer of who gives out a registry's tokens, and longest token: some carry what they allow, signed.
pub const FLEET_TOKEN_ANSWER_BYTES: u64 = 256 << 10;
pub const FLEET_TOKEN_BYTES: usize = 64 << 10;

/// Longest word that a registry says of who gives out its tokens, of an address's length.
pub const FLEET_CHALLENGE_BYTES: usize = FLEET_URL_BYTES;

/// How long bundles that have come wait for others that are still written: a broker hands over all that it
/// retains within a moment, and only the newest of them matters.
pub const FLEET_GATHER: std::time::Duration = std::time::Duration::from_secs(2);

/// Most bundles of an inbox that are looked at: one is usual.
pub const FLEET_INBOX_FILES: usize = 256;

/// How often models are looked at while a bundle is on probation.
pub const FLEET_LOOK: std::time::Duration = std::time::Duration::from_secs(1);

/// How long the models of a bundle may take to be in service: as long as a trial and a load of the largest on a
/// box that is busy with another.
pub const FLEET_PATIENCE: std::time::Duration = std::time::Duration::from_secs(900);
