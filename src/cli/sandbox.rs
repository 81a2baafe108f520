//! How a command that touches a model keeps itself from everything else.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use blochd::config::Sandbox;
use blochd::shell::children::confine::{self, Needs};
use clap::{Args, ValueEnum};
use serde_json::json;

use super::{Code, Failure};

#[derive(Debug, Args)]
pub struct SandboxArgs {
    /// Keep this process from files that it does not need, from the network and from most of the kernel: for
    /// models that nobody vouches for. auto does what the kernel can; required ends with exit code 69 where it
    /// cannot.
    #[arg(long, value_enum, default_value_t = SandboxArg::Off)]
    sandbox: SandboxArg,
    /// The folder for what is kept for a while.
    #[arg(long, hide = true)]
    scratch: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SandboxArg {
    Auto,
    Off,
    Required,
}

impl SandboxArgs {
    pub fn is_off(&self) -> bool {
        self.sandbox == SandboxArg::Off
    }

    /// What is asked for, in the configuration's words.
    pub fn wanted(&self) -> Sandbox {
        match self.sandbox {
            SandboxArg::Auto => Sandbox::Auto,
            SandboxArg::Off => Sandbox::Off,
            SandboxArg::Required => Sandbox::Required,
        }
    }

    /// The folder for what is kept for a while, where there is one.
    pub fn scratch(&self) -> Option<&Path> {
        self.scratch.as_deref()
    }

    /// Confines this process, which has one thread and has opened nothing yet. `tell`: one line of JSON says
    /// what is in force, for programs; people are told what is not.
    pub fn begin(&self, mut needs: Needs, tell: bool) -> Result<(), Failure> {
        if self.is_off() {
            return Ok(());
        }
        needs.write.extend(self.scratch.clone());
        let confined = confine::begin(&needs);
        if tell {
            println!(
                "{}",
                json!({
                    "event": "confined", "landlock": confined.landlock,
                    "seccomp": confined.seccomp, "missing": confined.missing,
                })
            );
        } else if !confined.missing.is_empty() {
            eprintln!("blochd: confined by {confined}");
        }
        if self.sandbox == SandboxArg::Required && !confined.is_enough() {
            let error =
                anyhow!("this kernel cannot confine it as `sandbox: required` asks: {confined}");
            return Err(Failure { code: Code::Unavailable, error });
        }
        Ok(())
    }
}
