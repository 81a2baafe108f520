//! A server is asked for bundles over HTTPS, every so often, for as long as the agent runs. What is new is put
//! into the inbox; whoever looks there finds it. Neither the agent nor its other links ever wait for it.

use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use ureq::http::{HeaderMap, Response};

use super::https::{Wanted, WebError, authorization, client};
use crate::config::{Poll, WebAddress};
use crate::fleet::Timestamp;
use crate::fleet::polling::{Ended, Polling};
use crate::limits;
use crate::shell::fleet::inbox;
use crate::units::{ByteSize, Digest};

/// The settings, for errors.
const SETTINGS: &str = "fleet.poll";

/// Why nothing came of a question.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PollError {
    #[error(transparent)]
    Web(#[from] WebError),
    #[error("{0} is not on this box: it is not asked without TLS (fleet.poll.plaintext)")]
    Plaintext(String),
    #[error("it answers {status}")]
    Status { status: u16, retry_after: Option<Duration> },
    #[error("what it sends has more than {}", ByteSize(limits::FLEET_BUNDLE_BYTES as u64))]
    TooLarge,
    #[error("its answer broke off: {0}")]
    BrokenOff(String),
    #[error("cannot put a bundle into the inbox: {0}")]
    Inbox(String),
    #[error("the question was not asked")]
    NotAsked,
}

impl PollError {
    /// A server that answers so is there, and will answer so until somebody changes that.
    fn is_answer(&self) -> bool {
        match self {
            Self::Status { status, .. } => {
                (400..500).contains(status) && !matches!(status, 408 | 425 | 429)
            }
            Self::TooLarge => true,
            Self::Web(_)
            | Self::Plaintext(_)
            | Self::BrokenOff(_)
            | Self::Inbox(_)
            | Self::NotAsked => false,
        }
    }

    fn ended(&self) -> Ended {
        match self {
            Self::Status { retry_after, .. } if !self.is_answer() => {
                Ended::Unanswered { retry_after: *retry_after }
            }
            error if error.is_answer() => Ended::Answered,
            _ => Ended::Unanswered { retry_after: None },
        }
    }
}

/// What a server answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Something else than before.
    Bundle,
    /// What it sent before, or the same again.
    Unchanged,
    /// That there is nothing.
    Nothing,
}

impl Answer {
    fn word(self) -> &'static str {
        match self {
            Self::Bundle => "bundle",
            Self::Unchanged => "unchanged",
            Self::Nothing => "nothing",
        }
    }
}

/// How the polling goes, for the status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PollState {
    /// Questions, answers to them, and how many of those brought another bundle.
    pub asked: u64,
    pub answered: u64,
    pub brought: u64,
    pub last_asked: Option<Timestamp>,
    pub last_answered: Option<Timestamp>,
    pub answer: Option<Answer>,
    /// What was wrong the last time.
    pub error: Option<PollError>,
}

/// The state, shared with who tells it.
#[derive(Debug, Clone, Default)]
pub struct Shared(Arc<Mutex<PollState>>);

impl Shared {
    pub fn get(&self) -> PollState {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn with<T>(&self, change: impl FnOnce(&mut PollState) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// For `blochd status`.
    pub fn status(&self) -> Value {
        let state = self.get();
        let moment = |at: Option<Timestamp>| at.map(|at| at.to_string());
        json!({
            "asked": state.asked, "answered": state.answered, "brought": state.brought,
            "last_asked": moment(state.last_asked), "last_answered": moment(state.last_answered),
            "answer": state.answer.map(Answer::word),
            "error": state.error.map(|error| error.to_string()),
        })
    }
}

/// What is asked for, and where what comes is put.
#[derive(Debug, Clone)]
pub struct Errand {
    pub settings: Poll,
    pub url: WebAddress,
    /// The bundle's file in the inbox.
    pub place: PathBuf,
}

/// By what a server knows again what it sent.
#[derive(Debug, Clone, Default)]
struct Known {
    tag: Option<String>,
    modified: Option<String>,
    /// Of what lies in the inbox since then.
    digest: Option<Digest>,
}

/// Asks until it is stopped. `seed` spreads the questions of boxes over time.
pub async fn run(errand: Errand, state: Shared, stop: CancellationToken, seed: u64) {
    let mut chance = ChaCha8Rng::seed_from_u64(seed);
    let interval = Duration::from(errand.settings.interval);
    let (mut polling, mut known, mut told) = (Polling::default(), Known::default(), None);
    let mut wait = Polling::first(interval, chance.random::<f64>());
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        state.with(|state| {
            state.asked += 1;
            state.last_asked = Some(now());
        });
        let (own, before) = (errand.clone(), known.clone());
        let asked = tokio::task::spawn_blocking(move || ask(&own, before));
        let outcome = tokio::select! {
            // The thread ends by itself: all that it waits for is bounded.
            () = stop.cancelled() => return,
            outcome = asked => outcome.unwrap_or(Err(PollError::NotAsked)),
        };
        let ended = match &outcome {
            Ok(_) => Ended::Answered,
            Err(error) => error.ended(),
        };
        state.with(|state| note(state, &outcome, ended));
        match outcome {
            Ok((answer, now)) => {
                if told.take().is_some() {
                    tracing::info!("the server of bundles answers again");
                }
                if answer == Answer::Bundle {
                    tracing::info!(place = %errand.place.display(), "a bundle came");
                }
                known = now;
            }
            // Weeks without a server are one line.
            Err(error) => {
                if told.as_ref() != Some(&error) {
                    let url = errand.url.shown();
                    tracing::warn!(url, "no bundle comes: {error}; it is asked again");
                }
                told = Some(error);
            }
        }
        wait = polling.next(ended, interval, chance.random::<f64>());
    }
}

fn note(state: &mut PollState, outcome: &Result<(Answer, Known), PollError>, ended: Ended) {
    if ended == Ended::Answered {
        state.answered += 1;
        state.last_answered = Some(now());
    }
    match outcome {
        Ok((answer, _)) => {
            state.answer = Some(*answer);
            state.error = None;
            state.brought += u64::from(*answer == Answer::Bundle);
        }
        Err(error) => state.error = Some(error.clone()),
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Timestamp(since.map_or(0, |since| since.as_secs()))
}

/// Asks once. What comes is in the inbox when this returns, and only then known.
fn ask(errand: &Errand, known: Known) -> Result<(Answer, Known), PollError> {
    let Errand { settings, url, place } = errand;
    if !url.tls && !url.is_here() && !settings.plaintext {
        return Err(PollError::Plaintext(url.host.clone()));
    }
    let sign_in = &settings.sign_in;
    let whole = Some(limits::LINK_POLL_ANSWER);
    let wanted = Wanted { sign_in, settings: SETTINGS, tls: url.tls, whole };
    let client = client(&wanted).map_err(WebError::from)?;
    let mut request = client.get(url.text());
    if let Some(who) = authorization(sign_in).map_err(WebError::from)? {
        request = request.header("Authorization", who);
    }
    // What somebody has taken out of the inbox is asked for anew.
    let there = inbox::read(place).ok().map(|bytes| Digest::of(&bytes));
    let known = if there == known.digest { known } else { Known::default() };
    if let Some(tag) = &known.tag {
        request = request.header("If-None-Match", tag);
    }
    if let Some(modified) = &known.modified {
        request = request.header("If-Modified-Since", modified);
    }
    let answer = request.call().map_err(|error| WebError::of(&error, SETTINGS))?;
    match answer.status().as_u16() {
        200 => take(answer, known, place),
        204 => Ok((Answer::Nothing, Known::default())),
        304 if known.digest.is_some() => Ok((Answer::Unchanged, known)),
        status => {
            let retry_after = retry_after(answer.headers());
            Err(PollError::Status { status, retry_after })
        }
    }
}

/// Puts what a server sends into the inbox.
fn take(
    answer: Response<ureq::Body>,
    known: Known,
    place: &std::path::Path,
) -> Result<(Answer, Known), PollError> {
    let word = |name: &str| {
        let value = answer.headers().get(name)?.to_str().ok()?;
        (value.len() <= limits::LINK_POLL_TAG_BYTES).then(|| value.to_owned())
    };
    let (tag, modified) = (word("etag"), word("last-modified"));
    let mut bytes = Vec::new();
    let most = limits::FLEET_BUNDLE_BYTES as u64;
    let mut body = answer.into_body().into_reader().take(most + 1);
    body.read_to_end(&mut bytes).map_err(|error| PollError::BrokenOff(error.to_string()))?;
    if bytes.len() as u64 > most {
        return Err(PollError::TooLarge);
    }
    // As an empty message of a broker: nothing is wanted any more.
    if bytes.is_empty() {
        return Ok((Answer::Nothing, Known::default()));
    }
    let digest = Digest::of(&bytes);
    let there = inbox::put(place, Bytes::from(bytes));
    let new = there.map_err(|error| PollError::Inbox(error.to_string()))?;
    let unchanged = known.digest == Some(digest) || !new;
    let answer = if unchanged { Answer::Unchanged } else { Answer::Bundle };
    Ok((answer, Known { tag, modified, digest: Some(digest) }))
}

/// The seconds that a server asks to be left alone; a date is passed over.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get("retry-after")?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_tells_when_it_is_asked_again() {
        let status = |status, seconds: Option<u64>| {
            PollError::Status { status, retry_after: seconds.map(Duration::from_secs) }.ended()
        };
        for answered in [401, 403, 404, 410] {
            assert_eq!(status(answered, None), Ended::Answered);
        }
        for busy in [408, 429, 500, 503, 304] {
            let asked = Some(Duration::from_secs(60));
            assert_eq!(status(busy, Some(60)), Ended::Unanswered { retry_after: asked });
        }
        assert_eq!(PollError::TooLarge.ended(), Ended::Answered);
        let none = Ended::Unanswered { retry_after: None };
        assert_eq!(PollError::Web(WebError::SentToPlain).ended(), none);
    }

    #[test]
    fn only_seconds_are_taken_for_a_time_to_stay_away() {
        let of = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("retry-after", text.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(of("120"), Some(Duration::from_secs(120)));
        assert_eq!(of("Fri, 31 Dec 2026 23:59:59 GMT"), None);
        assert_eq!(of("-1"), None);
    }
}
