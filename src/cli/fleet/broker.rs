//! How an operator's commands reach the fleet's broker, and what they have of it in common.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use blochd::config::{BrokerUrl, FleetName, Mqtt, SecretFile, UserName};
use blochd::fleet::roll_call::RollCall;
use blochd::fleet::topics::Topics;
use blochd::limits;
use blochd::shell::links::LinkError;
use blochd::shell::links::operator::Operator;
use clap::Args;

use super::{Code, Failure, OrFail};

/// The broker, and who asks. The variables are those of the agent's own settings.
#[derive(Debug, Clone, Args)]
pub struct Connection {
    /// The broker: mqtts://HOST[:PORT], or mqtt:// on this box.
    #[arg(long, value_name = "URL", env = "BLOCHD_FLEET__MQTT__URL")]
    broker: BrokerUrl,
    /// Name of the fleet.
    #[arg(long, default_value = "default", env = "BLOCHD_FLEET__MQTT__FLEET")]
    fleet: String,
    /// Certificates of those who may vouch for the broker [default: those whom the system trusts].
    #[arg(long, env = "BLOCHD_FLEET__MQTT__CA")]
    ca: Option<PathBuf>,
    /// The operator's own certificate.
    #[arg(long, requires = "client_key", env = "BLOCHD_FLEET__MQTT__CLIENT_CERTIFICATE")]
    client_certificate: Option<PathBuf>,
    /// The key of that certificate.
    #[arg(long, requires = "client_certificate", env = "BLOCHD_FLEET__MQTT__CLIENT_KEY")]
    client_key: Option<PathBuf>,
    #[arg(long, env = "BLOCHD_FLEET__MQTT__USERNAME")]
    username: Option<String>,
    /// A file whose first line is the password.
    #[arg(long, env = "BLOCHD_FLEET__MQTT__PASSWORD_FILE")]
    broker_password_file: Option<PathBuf>,
    /// Speak to a broker elsewhere without TLS.
    #[arg(long)]
    plaintext: bool,
}

impl Connection {
    pub fn topics(&self) -> Result<Topics, Failure> {
        Topics::new(&self.fleet).code(Code::Usage)
    }

    pub async fn connect(&self) -> Result<Operator, Failure> {
        let settings = Mqtt {
            url: Some(self.broker.clone()),
            fleet: FleetName(self.fleet.clone()),
            ca: self.ca.clone(),
            client_certificate: self.client_certificate.clone().map(SecretFile),
            client_key: self.client_key.clone().map(SecretFile),
            username: self.username.clone().map(UserName),
            password_file: self.broker_password_file.clone().map(SecretFile),
            plaintext: self.plaintext,
        };
        // Two operators at a time do not push each other out.
        let id = format!("blochd-operator-{}-{:08x}", std::process::id(), any());
        Operator::connect(&settings, &id).await.map_err(|error| unreached(&error))
    }
}

/// A number that others hardly have too.
fn any() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(Instant::now()) as u32
}

pub fn unreached(error: &LinkError) -> Failure {
    Failure { code: Code::Unavailable, error: anyhow!("{error}") }
}

/// Carries out what waits for a broker.
pub fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.code(Code::Software)?.block_on(work)
}

/// Hears what the broker retains: until nothing more has come for a while, or `patience` is over.
pub async fn roll_call(
    operator: &mut Operator,
    topics: &Topics,
    patience: Duration,
) -> Result<RollCall, Failure> {
    operator.follow(&topics.of_operators()).await.map_err(|error| unreached(&error))?;
    let mut roll = RollCall::new(topics.clone());
    let end = Instant::now() + patience;
    loop {
        let rest = end.saturating_duration_since(Instant::now()).min(limits::LINK_QUIET);
        match tokio::time::timeout(rest, operator.next()).await {
            Ok(Ok(message)) => drop(roll.hear(&message.topic, &message.payload)),
            Ok(Err(error)) => return Err(unreached(&error)),
            Err(_) => return Ok(roll),
        }
    }
}
