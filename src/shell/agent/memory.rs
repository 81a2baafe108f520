//! Whether a variant finds place in memory beside what is loaded already, and giving it back.

use std::path::Path;

use crate::limits;
use crate::shell::models;
use crate::shell::probe::HostProbe;
use crate::units::ByteSize;

/// Lets go of sessions off the event loop: freeing a large model takes a while.
pub fn free(what: impl Send + 'static) {
    tokio::task::spawn_blocking(move || drop(what));
}

/// Whether `instances` sessions of the model at `path` find place in what is available now, limits of the
/// slice included; `lends` says whether the sessions hold their weights together. To be asked right before
/// they are loaded: what loads at the same time is not counted.
///
/// # Errors
/// The reason, for people. A box that does not tell what is available is trusted.
pub fn room_for(path: &Path, instances: usize, lends: bool) -> Result<(), String> {
    let host = HostProbe::new().host();
    if host.memory.total == 0 {
        return Ok(());
    }
    let available = host.memory_available();
    let needed = needed(path, instances, lends);
    if available >= needed {
        return Ok(());
    }
    let (needed, available) = (ByteSize(needed), ByteSize(available));
    Err(format!("{needed} of memory are wanted for it, {available} are available"))
}

/// Weights, their packed copies and the activations of every instance, and what must stay free. Sessions that
/// hold their weights together have one set of them, packed and as the runtime reads it.
fn needed(path: &Path, instances: usize, lends: bool) -> u64 {
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |meta| meta.len());
    let folder = path.parent().unwrap_or(Path::new("."));
    // Why a file cannot be read is for loading it to say.
    let external = models::external_files(path).unwrap_or_default();
    let all =
        external.iter().map(|name| size(&folder.join(name))).fold(size(path), u64::saturating_add);
    let further = (instances as u64).saturating_sub(1);
    let each = if lends { all.min(limits::SESSION_BYTES) } else { all };
    all.saturating_mul(3)
        .saturating_add(each.saturating_mul(further))
        .saturating_add(limits::MEMORY_RESERVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_count_wherever_they_stand_and_for_every_instance() {
        let dir = tempfile::tempdir().unwrap();
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models/fixtures/external");
        for file in ["model.onnx", "weights.bin"] {
            std::fs::copy(fixtures.join(file), dir.path().join(file)).unwrap();
        }
        let model = dir.path().join("model.onnx");
        let size = |file: &str| std::fs::metadata(fixtures.join(file)).unwrap().len();
        let both = size("model.onnx") + size("weights.bin");
        assert_eq!(needed(&model, 1, false), 3 * both + limits::MEMORY_RESERVE);
        assert_eq!(needed(&model, 4, false), 6 * both + limits::MEMORY_RESERVE);
        assert_eq!(room_for(&model, 1, false), Ok(()));
        let why = room_for(&model, usize::MAX >> 8, false).unwrap_err();
        assert!(why.contains("are available"), "{why}");
    }

    #[test]
    fn a_further_session_that_is_lent_its_weights_costs_little() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model.onnx");
        let large = 2 * limits::SESSION_BYTES;
        std::fs::File::create(&model).unwrap().set_len(large).unwrap();
        let alone = 3 * large + limits::MEMORY_RESERVE;
        assert_eq!(needed(&model, 1, true), alone);
        assert_eq!(needed(&model, 4, true), alone + 3 * limits::SESSION_BYTES);
        assert_eq!(needed(&model, 4, false), alone + 3 * large);
        std::fs::File::create(&model).unwrap().set_len(1000).unwrap();
        assert_eq!(needed(&model, 4, true), needed(&model, 4, false), "never more than of its own");
    }
}
