//! The CPUs that this process may use, and binding threads to them.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::config::{Config, Cpus, ModelConfig};

/// A setting that names a CPU which this process may not use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{setting}` names CPU {cpu}, which the agent may not use: write numbers of {}, auto or none",
    ranges(usable)
)]
pub struct NotUsable {
    /// `defaults.cpus`, `models.ocr.cpus`.
    pub setting: String,
    pub cpu: usize,
    /// Those that it may use, ascending.
    pub usable: Vec<usize>,
}

/// The CPUs that the kernel lets this process use (its control group's and its own mask), ascending.
///
/// # Errors
/// Where the kernel does not tell, which no Linux in use does.
pub fn usable() -> std::io::Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect())
}

/// Whether `config` names only CPUs of `usable`; `setting` is how the error calls it.
///
/// # Errors
/// The first one that is not among them.
pub fn check_model(config: &ModelConfig, usable: &[usize], setting: &str) -> Result<(), NotUsable> {
    let Cpus::List(list) = &config.cpus else { return Ok(()) };
    match list.iter().find(|cpu| !usable.contains(cpu)) {
        None => Ok(()),
        Some(cpu) => {
            let (setting, usable) = (setting.to_owned(), usable.to_vec());
            Err(NotUsable { setting, cpu: *cpu, usable })
        }
    }
}

/// The same for the defaults and every model of a configuration, on this box. One that does not tell its CPUs
/// is trusted.
///
/// # Errors
/// As [`check_model`].
pub fn check(config: &Config) -> Result<(), NotUsable> {
    let Ok(usable) = usable() else { return Ok(()) };
    check_model(&config.defaults, &usable, "defaults.cpus")?;
    for name in config.named_models() {
        // What is wrong in itself is told when it is loaded.
        if let Ok(model) = config.model(name, None) {
            check_model(&model, &usable, &format!("models.{name}.cpus"))?;
        }
    }
    Ok(())
}

/// Binds the calling thread, and those that it will start, to `cpus`.
///
/// # Errors
/// Where the kernel refuses: none of them may be used any more.
pub fn bind(cpus: &[usize]) -> std::io::Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu)?;
    }
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// `0-3, 6`.
fn ranges(cpus: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for cpu in cpus {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *cpu => *last = *cpu,
            Some(_) | None => runs.push((*cpu, *cpu)),
        }
    }
    let text = |(first, last): &(usize, usize)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    runs.iter().map(text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_that_may_not_be_used_is_named_with_those_that_may() {
        let with = |cpus| ModelConfig { cpus, ..ModelConfig::default() };
        let usable = [0, 1, 2, 5];
        for cpus in [Cpus::None, Cpus::Auto, Cpus::List(vec![5, 0])] {
            check_model(&with(cpus), &usable, "defaults.cpus").unwrap();
        }
        let error = check_model(&with(Cpus::List(vec![2, 3])), &usable, "defaults.cpus");
        let words = error.unwrap_err().to_string();
        assert!(words.contains("`defaults.cpus` names CPU 3"), "{words}");
        assert!(words.contains("0-2, 5"), "{words}");
    }

    #[test]
    fn a_thread_is_bound_alone() {
        let before = usable().unwrap();
        let last = *before.last().unwrap();
        let bound = std::thread::spawn(move || {
            bind(&[last]).unwrap();
            usable().unwrap()
        });
        assert_eq!(bound.join().unwrap(), [last]);
        assert_eq!(usable().unwrap(), before);
        assert!(bind(&[]).is_err(), "a thread without a CPU");
        assert!(bind(&[usize::MAX]).is_err());
    }
}
