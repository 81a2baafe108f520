//! Text ↔ typed values, each with its range. The text is that of a YAML scalar, an environment
//! variable or a flag alike.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use crate::limits::{self, SOCKET_PATH_BYTES};
use crate::units::{ByteSize, Percentile, Span, UnitError, is_fleet_name, is_latency_ratio};

use super::checked::{
    Accelerator, Bandwidth, Budget, Collector, Cpus, Inbox, KeyFiles, Labels, LogFormat, LogLevel,
    Method, NodeId, Sandbox, Socket, Threads, TraceDir,
};
use super::error::{Wrong, did_you_mean};
use super::mqtt::{BrokerUrl, BrokerUrlError, FleetName, SecretFile, UserName};

/// The text that reads back as the same value.
pub(super) trait Show {
    fn show(&self) -> String;
}

macro_rules! show_by_display {
    ($($name:ty),*) => {$(
        impl Show for $name {
            fn show(&self) -> String {
                self.to_string()
            }
        }
    )*};
}

show_by_display!(
    SocketAddr, Span, ByteSize, Budget, Threads, Cpus, String, bool, usize, i32, u32, u64, f64
);

impl Show for PathBuf {
    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl Show for Socket {
    fn show(&self) -> String {
        match self {
            Self::Auto => "auto".to_owned(),
            Self::Off => "none".to_owned(),
            Self::At(path) => path.show(),
        }
    }
}

impl Show for Accelerator {
    fn show(&self) -> String {
        match self {
            Self::Auto => "auto".to_owned(),
            Self::Off => "none".to_owned(),
            Self::At(path) => path.show(),
        }
    }
}

impl Show for Vec<f64> {
    fn show(&self) -> String {
        self.iter().map(f64::to_string).collect::<Vec<_>>().join(", ")
    }
}

/// `None` is written as `auto` or `none`; which of them is right stands in [`Absent`].
impl<T: Show + Absent> Show for Option<T> {
    fn show(&self) -> String {
        self.as_ref().map_or_else(|| T::WORD.to_owned(), Show::show)
    }
}

/// The word that stands for "not given".
pub(super) trait Absent {
    const WORD: &'static str;
}

impl Absent for Budget {
    const WORD: &'static str = "none";
}

impl Absent for SocketAddr {
    const WORD: &'static str = "none";
}

impl Absent for PathBuf {
    const WORD: &'static str = "auto";
}

impl Show for TraceDir {
    fn show(&self) -> String {
        self.0.show()
    }
}

impl Absent for TraceDir {
    const WORD: &'static str = "none";
}

impl Show for Collector {
    fn show(&self) -> String {
        self.0.clone()
    }
}

impl Absent for Collector {
    const WORD: &'static str = "none";
}

impl Show for NodeId {
    fn show(&self) -> String {
        self.0.clone()
    }
}

impl Absent for NodeId {
    const WORD: &'static str = "auto";
}

impl Show for Labels {
    fn show(&self) -> String {
        let one = |(name, value): (&String, &String)| format!("{name}={value}");
        self.0.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

impl Show for KeyFiles {
    fn show(&self) -> String {
        self.0.iter().map(Show::show).collect::<Vec<_>>().join(", ")
    }
}

impl Show for Inbox {
    fn show(&self) -> String {
        self.0.show()
    }
}

impl Absent for Inbox {
    const WORD: &'static str = "none";
}

impl Show for Bandwidth {
    fn show(&self) -> String {
        self.0.show()
    }
}

impl Absent for Bandwidth {
    const WORD: &'static str = "none";
}

impl Absent for ByteSize {
    const WORD: &'static str = "auto";
}

impl Absent for f64 {
    const WORD: &'static str = "none";
}

/// `what; right` of a [`UnitError`], whose text has both parts joined by a colon.
fn unit(error: &UnitError) -> Wrong {
    let text = error.to_string();
    let (what, right) = text.split_once(": ").unwrap_or((&text, "write another value"));
    Wrong::new(what, right)
}

/// Any type that reads itself, with a hint.
fn parsed<T: FromStr>(text: &str, kind: &str, right: &str) -> Result<T, Wrong> {
    text.trim().parse().map_err(|_| Wrong::new(format!("{text:?} is not {kind}"), right))
}

/// An IP address and a port; `localhost` is 127.0.0.1.
pub(super) fn address(text: &str) -> Result<SocketAddr, Wrong> {
    let right = "write an IP address and a port, such as 127.0.0.1:8000 or [::]:8000";
    if let Some(port) = text.trim().strip_prefix("localhost:") {
        let port: u16 = parsed(port, "a port", "write a number from 0 to 65535")?;
        return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    parsed(text, "a socket address", right)
}

pub(super) fn address_or_none(text: &str) -> Result<Option<SocketAddr>, Wrong> {
    if text.trim() == SocketAddr::WORD {
        return Ok(None);
    }
    let or_none = |wrong: Wrong| Wrong::new(wrong.what, format!("{}, or none", wrong.right));
    address(text).map(Some).map_err(or_none)
}

/// A path that the kernel takes as a Unix socket's, `auto` or `none`.
pub(super) fn socket(text: &str) -> Result<Socket, Wrong> {
    match text {
        "auto" => Ok(Socket::Auto),
        "none" => Ok(Socket::Off),
        // The kernel's structure has 108 bytes; beside the socket another one is made first.
        _ if text.len() > SOCKET_PATH_BYTES => {
            let what = format!("the path has {} bytes", text.len());
            Err(Wrong::new(what, format!("write one of at most {SOCKET_PATH_BYTES}")))
        }
        _ => path(text).map(Socket::At),
    }
}

/// A library or its folder, `auto` or `none`.
pub(super) fn accelerator(text: &str) -> Result<Accelerator, Wrong> {
    match text {
        "auto" => Ok(Accelerator::Auto),
        "none" => Ok(Accelerator::Off),
        _ => path(text).map(Accelerator::At),
    }
}

pub(super) fn path(text: &str) -> Result<PathBuf, Wrong> {
    if text.is_empty() || text.contains('\0') {
        return Err(Wrong::new("the path is empty", "write a path"));
    }
    Ok(PathBuf::from(text))
}

pub(super) fn path_or_auto(text: &str) -> Result<Option<PathBuf>, Wrong> {
    if text == PathBuf::WORD { Ok(None) } else { path(text).map(Some) }
}

/// A directory, or `none`.
pub(super) fn trace(text: &str) -> Result<Option<TraceDir>, Wrong> {
    if text == TraceDir::WORD { Ok(None) } else { path(text).map(|dir| Some(TraceDir(dir))) }
}

/// A directory for bundles, or `none`.
pub(super) fn inbox(text: &str) -> Result<Option<Inbox>, Wrong> {
    if text == Inbox::WORD { Ok(None) } else { path(text).map(|dir| Some(Inbox(dir))) }
}

/// A name that bundles call the box by, or `auto`.
pub(super) fn node_id(text: &str) -> Result<Option<NodeId>, Wrong> {
    let text = text.trim();
    if text == NodeId::WORD {
        return Ok(None);
    }
    fleet_name(text).map(|()| Some(NodeId(text.to_owned())))
}

fn fleet_name(text: &str) -> Result<(), Wrong> {
    if is_fleet_name(text) {
        return Ok(());
    }
    let right = format!(
        "write 1 to {} letters (a-z, A-Z), digits, dots, dashes and underscores",
        limits::FLEET_NAME_BYTES
    );
    Err(Wrong::new(format!("{text:?} is no name in a fleet"), right))
}

/// `site=berlin, line=a`; nothing: no labels.
pub(super) fn labels(text: &str) -> Result<Labels, Wrong> {
    let mut labels = BTreeMap::new();
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let right = "write labels as name=value, with commas between";
        let wrong = || Wrong::new(format!("{item:?} is no label"), right);
        let (name, value) = item.split_once('=').ok_or_else(wrong)?;
        fleet_name(name.trim())?;
        fleet_name(value.trim())?;
        if labels.insert(name.trim().to_owned(), value.trim().to_owned()).is_some() {
            return Err(Wrong::new(format!("label {name} stands twice"), "remove one"));
        }
    }
    if labels.len() > limits::FLEET_LABELS {
        let what = format!("there are {} labels", labels.len());
        return Err(Wrong::new(what, format!("write at most {}", limits::FLEET_LABELS)));
    }
    Ok(Labels(labels))
}

/// Paths with commas between; nothing: none.
pub(super) fn key_files(text: &str) -> Result<KeyFiles, Wrong> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    let files: Vec<PathBuf> = items.map(path).collect::<Result<_, Wrong>>()?;
    if files.len() > limits::FLEET_KEYS {
        let what = format!("there are {} keys", files.len());
        return Err(Wrong::new(what, format!("write at most {}", limits::FLEET_KEYS)));
    }
    Ok(KeyFiles(files))
}

impl Show for BrokerUrl {
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Absent for BrokerUrl {
    const WORD: &'static str = "none";
}

impl Show for FleetName {
    fn show(&self) -> String {
        self.0.clone()
    }
}

impl Show for SecretFile {
    fn show(&self) -> String {
        self.0.show()
    }
}

impl Absent for SecretFile {
    const WORD: &'static str = "none";
}

impl Show for UserName {
    fn show(&self) -> String {
        self.0.clone()
    }
}

impl Absent for UserName {
    const WORD: &'static str = "none";
}

/// A broker's address, or `none`. One with credentials in it is not repeated.
pub(super) fn broker(text: &str) -> Result<Option<BrokerUrl>, Wrong> {
    let text = text.trim();
    if text == BrokerUrl::WORD {
        return Ok(None);
    }
    let right = "write mqtts:// and a host, and who signs in under username and password_file";
    text.parse().map(Some).map_err(|error: BrokerUrlError| Wrong::new(error.to_string(), right))
}

/// Name of a fleet.
pub(super) fn fleet(text: &str) -> Result<FleetName, Wrong> {
    fleet_name(text.trim()).map(|()| FleetName(text.trim().to_owned()))
}

/// A file or a credential, or `none`.
pub(super) fn secret_file(text: &str) -> Result<Option<SecretFile>, Wrong> {
    if text == SecretFile::WORD {
        return Ok(None);
    }
    if let Some(name) = text.strip_prefix(SecretFile::CREDENTIAL) {
        // It names a file in one folder.
        fleet_name(name)?;
    }
    path(text).map(|file| Some(SecretFile(file)))
}

/// Whom a box signs in as, or `none`.
pub(super) fn user_name(text: &str) -> Result<Option<UserName>, Wrong> {
    let text = text.trim();
    if text == UserName::WORD {
        return Ok(None);
    }
    let fits = (1..=limits::FLEET_NAME_BYTES).contains(&text.len());
    if !fits || text.chars().any(char::is_control) {
        let right = format!("write 1 to {} characters", limits::FLEET_NAME_BYTES);
        return Err(Wrong::new("the user name does not fit", right));
    }
    Ok(Some(UserName(text.to_owned())))
}

/// Bytes a second, at least 1 KiB of them, or `none`.
pub(super) fn bandwidth(text: &str) -> Result<Option<Bandwidth>, Wrong> {
    if text.trim() == Bandwidth::WORD {
        return Ok(None);
    }
    let value: ByteSize = text.trim().parse().map_err(|error| unit(&error))?;
    if value.0 < 1 << 10 {
        let right = "write at least 1KiB (a second), or none for all there is";
        return Err(Wrong::new(format!("{text} is too little"), right));
    }
    Ok(Some(Bandwidth(value)))
}

/// `http://host:port`, with a path or without, or `none`.
pub(super) fn collector(text: &str) -> Result<Option<Collector>, Wrong> {
    let text = text.trim();
    if text == Collector::WORD {
        return Ok(None);
    }
    let right = "write http://, a host and a port, such as http://127.0.0.1:4318, or none";
    if text.starts_with("https://") {
        let what = "spans are sent to a collector on this box or in its network, without TLS";
        return Err(Wrong::new(what, right));
    }
    let wrong = || Wrong::new(format!("{text:?} is no collector's address"), right);
    let rest = text.strip_prefix("http://").ok_or_else(wrong)?.trim_end_matches('/');
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    // A host's name, or an address, in brackets where it has colons.
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        Some(_) | None => (authority, None),
    };
    let of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let is_host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(of_name),
    };
    let is_port = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    let is_path = path.chars().all(|c| of_name(c) || matches!(c, '/' | '~' | '%'));
    if is_host && is_port && is_path {
        Ok(Some(Collector(format!("http://{rest}"))))
    } else {
        Err(wrong())
    }
}

fn span(text: &str) -> Result<Span, Wrong> {
    text.trim().parse::<Span>().map_err(|error| unit(&error))
}

/// A length of time within `least..=most`.
pub(super) fn span_within(text: &str, least: Span, most: Span) -> Result<Span, Wrong> {
    let value = span(text)?;
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(Wrong::new(
        format!("{text} is out of range"),
        format!("write a time from {least} to {most}"),
    ))
}

/// `1ms ..= 1h`, what most waits of the program lie in.
pub(super) fn wait(text: &str) -> Result<Span, Wrong> {
    span_within(text, Span::millis(1), Span::secs(3600))
}

/// A size of at least 1 MiB, or `auto`.
pub(super) fn memory(text: &str) -> Result<Option<ByteSize>, Wrong> {
    if text == ByteSize::WORD {
        return Ok(None);
    }
    let value: ByteSize = text.trim().parse().map_err(|error| unit(&error))?;
    if value.0 < 1 << 20 {
        let right = "write at least 1MiB, or `auto` for what the box has";
        return Err(Wrong::new(format!("{text} is too small"), right));
    }
    Ok(Some(value))
}

pub(super) fn flag(text: &str) -> Result<bool, Wrong> {
    parsed(text, "yes or no", "write true or false")
}

pub(super) fn whole(text: &str, least: usize, most: usize) -> Result<usize, Wrong> {
    let right = format!("write a whole number from {least} to {most}");
    let value: usize = parsed(text, "a whole number", &right)?;
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(Wrong::new(format!("{text} is out of range"), right))
}

/// Which of several devices, from 0.
pub(super) fn device(text: &str) -> Result<usize, Wrong> {
    whole(text, 0, limits::DEVICE_NUMBERS - 1)
}

pub(super) fn seed(text: &str) -> Result<u64, Wrong> {
    parsed(text, "a whole number", "write a whole number from 0 to 18446744073709551615")
}

pub(super) fn priority(text: &str) -> Result<i32, Wrong> {
    let right = "write a whole number; the higher goes first, 0 is usual";
    parsed(text, "a whole number", right)
}

pub(super) fn number(text: &str, least: f64, most: f64) -> Result<f64, Wrong> {
    let right = format!("write a number from {least} to {most}");
    let value: f64 = parsed(text, "a number", &right)?;
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(Wrong::new(format!("{text} is out of range"), right))
}

/// A part of a whole, or `none` of it.
pub(super) fn share(text: &str) -> Result<Option<f64>, Wrong> {
    if text.trim() == f64::WORD {
        return Ok(None);
    }
    let right = "write a number above 0 and up to 1, or none";
    let share: f64 = parsed(text, "a number", right)?;
    if share > 0.0 && share <= 1.0 {
        return Ok(Some(share));
    }
    Err(Wrong::new(format!("{text} is out of range"), right))
}

pub(super) fn threads(text: &str) -> Result<Threads, Wrong> {
    if text == "auto" {
        return Ok(Threads::Auto);
    }
    whole(text, 1, limits::INTRA_OP_THREADS)
        .map(Threads::Count)
        .map_err(|wrong| Wrong::new(wrong.what, format!("{}, or auto", wrong.right)))
}

/// `none`, `auto`, or numbers with commas.
pub(super) fn cpus(text: &str) -> Result<Cpus, Wrong> {
    let text = text.trim();
    match text {
        "none" => return Ok(Cpus::None),
        "auto" => return Ok(Cpus::Auto),
        _ => {}
    }
    let right = "write none, auto, or the numbers of CPUs, such as [2, 3]";
    let mut list = Vec::new();
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let most = limits::CPU_NUMBERS - 1;
        let cpu = whole(item, 0, most).map_err(|wrong| Wrong::new(wrong.what, right))?;
        if list.contains(&cpu) {
            return Err(Wrong::new(format!("{item} stands twice"), "remove one"));
        }
        list.push(cpu);
    }
    if list.is_empty() {
        return Err(Wrong::new("no CPU is named".to_owned(), right));
    }
    Ok(Cpus::List(list))
}

/// `p99: 40ms`, `p99=40ms`, `40ms` (p99 is meant) or `none`.
pub(super) fn budget(text: &str) -> Result<Option<Budget>, Wrong> {
    let text = text.trim();
    if text == Budget::WORD {
        return Ok(None);
    }
    let (percentile, limit) = match text.split_once([':', '=']) {
        Some((percentile, limit)) => {
            (percentile.trim().parse::<Percentile>().map_err(|error| unit(&error))?, limit.trim())
        }
        None => (Percentile::default(), text),
    };
    let limit = span(limit)
        .map_err(|wrong| Wrong::new(wrong.what, "write a budget such as p99: 40ms, or none"))?;
    if limit < Span::micros(1) || limit > Span::secs(3600) {
        let right = "write a time from 1us to 3600s, or none";
        return Err(Wrong::new(format!("a budget of {limit} cannot be held"), right));
    }
    Ok(Some(Budget { percentile, limit }))
}

/// Latency ratios to dense, kept in falling order.
pub(super) fn ratios(text: &str) -> Result<Vec<f64>, Wrong> {
    let right = "write numbers between 0.05 and 1, such as [0.9, 0.75, 0.6, 0.5]";
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    let mut ratios = Vec::new();
    for item in items {
        let ratio: f64 = parsed(item, "a number", right)?;
        if !is_latency_ratio(ratio) {
            let what = format!("{item} is no latency ratio of a faster variant");
            return Err(Wrong::new(what, right));
        }
        if ratios.contains(&ratio) {
            return Err(Wrong::new(format!("{item} stands twice"), "remove one"));
        }
        ratios.push(ratio);
    }
    if ratios.is_empty() {
        let right = format!("{right}; for no ladder at all, enabled: false");
        return Err(Wrong::new("a ladder without a ratio has no rung".to_owned(), right));
    }
    if ratios.len() > limits::LADDER_RATIOS {
        let what = format!("{} rungs are too many", ratios.len());
        return Err(Wrong::new(what, format!("write at most {}", limits::LADDER_RATIOS)));
    }
    ratios.sort_by(|a, b| b.total_cmp(a));
    Ok(ratios)
}

/// A type with a fixed list of words.
pub(super) fn word<T: Copy>(text: &str, words: &[(&'static str, T)]) -> Result<T, Wrong> {
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let names = || words.iter().map(|(word, _)| *word);
    let hint = did_you_mean(text, names());
    let right = format!("{hint} (one of {})", names().collect::<Vec<_>>().join(", "));
    Err(Wrong::new(format!("{text:?} is not known"), right))
}

macro_rules! words {
    ($name:ty, $function:ident, [$($text:literal => $variant:ident),* $(,)?]) => {
        impl Show for $name {
            fn show(&self) -> String {
                match self {
                    $(Self::$variant => $text.to_owned()),*
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.show())
            }
        }

        pub(super) fn $function(text: &str) -> Result<$name, Wrong> {
            word(text.trim(), &[$(($text, <$name>::$variant)),*])
        }
    };
}

words!(LogLevel, log_level, [
    "error" => Error, "warn" => Warn, "info" => Info, "debug" => Debug, "trace" => Trace,
]);
words!(LogFormat, log_format, [
    "auto" => Auto, "text" => Text, "json" => Json, "journald" => Journald,
]);
words!(Sandbox, sandbox, ["auto" => Auto, "off" => Off, "required" => Required]);
words!(Method, method, [
    "obs" => Obs, "response" => Response, "spectral" => Spectral, "magnitude" => Magnitude,
    "random" => Random,
]);
