//! The agent of the demo as a process of its own, with its folders, and what an operator does to it.

use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use blochd::config::layers::VARIABLE_PREFIX;
use blochd::shell::files;
use serde_json::Value;

use super::Running;

/// The agent as a process of its own, with its folders.
pub struct Agent {
    dir: PathBuf,
    pub port: u16,
    metrics_port: u16,
    runtime: PathBuf,
    process: Option<Running>,
}

impl Agent {
    pub fn start(dir: &Path, runtime: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(dir.join("models"))?;
        let mut agent = Self {
            dir: dir.to_owned(),
            port: free_port()?,
            metrics_port: free_port()?,
            runtime: runtime.to_owned(),
            process: None,
        };
        agent.write_config(None)?;
        let log = fs::File::create(dir.join("agent.log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("run").arg("--config").arg(dir.join("agent.yaml"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        without_settings(&mut command, std::env::vars_os().map(|(name, _)| name));
        agent.process = Some(Running(command.spawn()?));
        Ok(agent)
    }

    fn write_config(&self, budget: Option<Duration>) -> anyhow::Result<()> {
        let budget = budget.map_or(String::new(), |budget| {
            format!("  budget: \"p99: {}us\"\n", budget.as_micros())
        });
        let text = format!(
            "model_dir: {0}/models\nstate_dir: {0}/state\nhttp_address: 127.0.0.1:{1}\n\
             grpc_address: none\nadmin_address: none\nunix_socket: none\n\
             metrics_address: 127.0.0.1:{2}\nruntime_library: {3}\ndefaults:\n{4}  \
             intra_op_threads: 1\n  quality_floor: 0.9\n  governor:\n    \
             sustain: 6s\n    dwell: 2s\n  \
             ladder:\n    ratios: [0.75, 0.5]\n  calibration:\n    samples: 128\n",
            self.dir.display(),
            self.port,
            self.metrics_port,
            self.runtime.display(),
            budget
        );
        files::replace(&self.dir.join("agent.yaml"), &[text.into()])?;
        Ok(())
    }

    /// What an operator does: the file is replaced, the agent sees it.
    pub fn set_budget(&self, budget: Duration) -> anyhow::Result<()> {
        self.write_config(Some(budget))?;
        let told = |model: &Value| model["budget"].is_object();
        self.wait("the budget is taken over", 20, told).map(|_| ())
    }

    pub fn drop_model(&self, assets: &Path) -> anyhow::Result<()> {
        let model = self.dir.join("models/digits");
        fs::create_dir_all(model.join("1"))?;
        fs::copy(assets.join("digits_calibration.npz"), model.join("calibration.npz"))?;
        fs::copy(assets.join("digits_resnet.onnx"), model.join("1/model.onnx"))?;
        Ok(())
    }

    pub fn status(&self) -> anyhow::Result<Value> {
        let url = format!("http://127.0.0.1:{}/v2/blochd/status", self.port);
        Ok(ureq::get(&url).call()?.body_mut().read_json()?)
    }

    /// Waits until the one model is as wanted.
    pub fn wait(
        &self,
        what: &str,
        seconds: u64,
        wanted: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut last = String::new();
        loop {
            if let Ok(status) = self.status() {
                let model = &status["models"][0];
                if model.is_object() && wanted(model) {
                    println!("  {what}");
                    return Ok(model.clone());
                }
                last = model["build"].as_str().unwrap_or_default().to_owned();
            }
            if Instant::now() > end {
                let log = fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(5).collect();
                bail!("not within {seconds} s: {what} ({last}); the agent says: {tail:#?}");
            }
            thread::sleep(Duration::from_millis(250));
        }
    }
}

/// Settings in the environment would win over the demo's own file.
fn without_settings(command: &mut Command, names: impl Iterator<Item = OsString>) {
    for name in names.filter(|name| name.to_string_lossy().starts_with(VARIABLE_PREFIX)) {
        command.env_remove(name);
    }
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_the_user_do_not_reach_the_demos_agent() {
        let mut command = Command::new("blochd");
        let names = ["PATH", "BLOCHD_MODEL_DIR", "HOME", "BLOCHD_DEFAULTS__BUDGET"];
        without_settings(&mut command, names.into_iter().map(OsString::from));
        let removed: Vec<_> =
            command.get_envs().map(|(name, value)| (name.to_str().unwrap(), value)).collect();
        assert_eq!(removed, [("BLOCHD_DEFAULTS__BUDGET", None), ("BLOCHD_MODEL_DIR", None)]);
    }
}
