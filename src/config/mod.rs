//! Text → raw → checked configuration. Every error is reported at once, with line and column.
//!
//! [`raw`] reads YAML into a tree in which each value knows its place; [`schema`] is the one table of settings,
//! from which files, environment variables and flags are read and differences are told; [`layers`] puts
//! defaults < files < fleet < environment < flags on top of each other; [`fleet`] says what a fleet's bundle
//! may set; [`mqtt`] is where the fleet's broker is and [`web`] where its other servers are, and [`access`] who
//! may come in; [`checked`] is what the rest of the program sees, and [`json_schema`] what editors do;
//! [`version`] is that of all this; [`providers`] names what can run a model. The room reads neither files nor
//! the environment: `shell` hands them in.

pub mod access;
mod belongs;
pub mod checked;
pub mod diff;
pub mod error;
pub mod fleet;
pub mod json_schema;
pub mod layers;
pub mod mqtt;
mod plugins;
pub mod providers;
pub mod raw;
pub mod schema;
mod shapes;
mod values;
pub mod version;
mod wanted;
pub mod web;

#[cfg(test)]
mod tests;

pub use access::{
    AdminDoor, Asks, CertificateName, Grant, Opening, Scope, Scopes, Tls, WAYS_OUT, grant_settings,
};
pub use checked::{
    Accelerator, Bandwidth, Budget, Collector, Config, Cpus, Devices, Fleet, Inbox, KeyFiles,
    Labels, LogFormat, LogLevel, Method, ModelConfig, NodeId, Policy, Sandbox, Socket, Threads,
    TraceDir,
};
pub use diff::{Change, Diff};
pub(crate) use error::did_you_mean;
pub use error::{ConfigErrors, Origin, Problem};
pub use fleet::{FleetPart, fleet_problems};
pub use layers::{Flag, Layers, Loaded, Origins, Text, model_settings, settings};
pub use mqtt::{BrokerUrl, BrokerUrlError, FleetName, Mqtt, SecretFile, UserName};
pub use plugins::plugin_settings;
pub use providers::{Cann, NoProvider, Plugin, Provider};
pub use shapes::{ServedShapes, Sizes, shape_text};
pub use wanted::{ExecutionProviders, Wanted};
pub use web::{Depots, Hosts, NotFilled, Poll, PollUrl, SignIn, WebAddress, WebAddressError};
