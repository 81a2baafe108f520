//! Compiled models that are kept: what takes CANN minutes is done once for a model, and not at every start.
//!
//! The provider writes a compiled model to the working directory, and takes whatever lies there under the name
//! that it looks for: `CANNExecutionProvider_<graph>_<number>_…_<hash>.om`, made of the graph's name, of the
//! model's path or else its tensors' names, and of the shapes of one request. Weights are no part of it. So the
//! graph is given a name that no other one has: a hash of all that the compiled model depends on. The file of
//! another variant, of other options or of another runtime is never looked for.
//!
//! Trials alone write such files: each works in the folder of its own model (see [`super::super::compiled`]).
//! The agent, which has one working directory for all, is shown them there by links while it loads the model,
//! and writes none.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::NAME;
use crate::limits;
use crate::units::Digest;

/// What CANN is made of, as far as compiled models depend on it. The first that the linker finds are taken.
const LIBRARIES: [&str; 3] = ["libascendcl.so", "libge_compiler.so", "libacl_op_compiler.so"];

/// Where CANN is where nobody says otherwise, see the provider's own search path.
const FOLDERS: [&str; 2] =
    ["/usr/local/Ascend/ascend-toolkit/latest/lib64", "/usr/local/Ascend/cann/lib64"];

/// The model under a name of its own for its graph: what it is, and the words for all that compiles it.
///
/// The name is added behind the message. Of a field that stands twice the last one holds, and messages that do
/// are merged: so protobuf is defined, and so every reader of it does.
pub fn named(bytes: &Bytes, model: Digest, conditions: &str) -> Bytes {
    let key = Digest::of(format!("{model}\0{conditions}").as_bytes());
    let name = format!("blochd_{key}");
    // ModelProto.graph is field 7, GraphProto.name field 2; both lengths fit into a byte.
    let mut graph = vec![0x12, name.len() as u8];
    graph.extend_from_slice(name.as_bytes());
    let mut all = Vec::with_capacity(bytes.len() + graph.len() + 2);
    all.extend_from_slice(bytes);
    all.extend_from_slice(&[0x3a, graph.len() as u8]);
    all.extend_from_slice(&graph);
    all.into()
}

/// Which CANN there is, in words that change with it; none where none is found.
pub fn installed() -> String {
    let told = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&told)
        .chain(FOLDERS.map(PathBuf::from))
        .filter(|folder| folder.is_absolute())
        .collect();
    let one = |name: &&str| {
        let found = folders.iter().find_map(|folder| folder.join(name).canonicalize().ok())?;
        let meta = found.metadata().ok()?;
        Some(format!(" {} {} {}", found.display(), meta.len(), meta.mtime()))
    };
    LIBRARIES.iter().filter_map(one).collect()
}

/// Whether a file of this name is one that the provider may take.
pub(super) fn is_one(name: &str) -> bool {
    // Newer sources take a file whose name merely contains the one that is looked for.
    name.contains(NAME) && name.contains(".om")
}

/// The compiled models in a folder, by name.
fn of(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries
        .take(limits::DIRECTORY_ENTRIES)
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()));
    let mut all: Vec<_> = named.filter(|(name, _)| is_one(name)).collect();
    all.sort();
    all
}

/// Whether anything was compiled for this model.
pub fn is_there(folder: &Path) -> bool {
    !of(folder).is_empty()
}

/// Whether an entry of a working directory is a link into `folder`.
pub(super) fn is_shown(entry: &Path, folder: &Path) -> bool {
    fs::read_link(entry).is_ok_and(|to| to.starts_with(folder))
}

/// Links in the working directory to what was compiled of one model, until this is dropped.
#[derive(Debug)]
pub struct Shown(Vec<PathBuf>);

impl Shown {
    /// Shows what lies in `folder` in the working directory `here`, and nothing else: links that an agent
    /// has left there which was ended meanwhile are removed.
    ///
    /// # Errors
    /// Where a link cannot be made: there is none then.
    pub fn new(folder: &Path, here: &Path) -> io::Result<Self> {
        for (_, path) in of(here).into_iter().filter(|(_, path)| path.is_symlink()) {
            fs::remove_file(path)?;
        }
        let mut shown = Self(Vec::new());
        // Where there is no folder yet there is nothing to show.
        let Ok(folder) = folder.canonicalize() else { return Ok(shown) };
        for (name, path) in of(&folder) {
            let link = here.join(name);
            symlink(path, &link)?;
            shown.0.push(link);
        }
        Ok(shown)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        for link in self.0.drain(..).filter(|link| link.is_symlink()) {
            if let Err(error) = fs::remove_file(&link) {
                tracing::warn!("{} stays: {error}", link.display());
            }
        }
    }
}

/// Compiled models that do not do any more, put aside for the time of another try.
#[derive(Debug)]
pub struct Aside {
    folder: PathBuf,
    aside: PathBuf,
}

impl Aside {
    /// Puts what is in `folder` aside; an empty one takes its place.
    ///
    /// # Errors
    /// Where it cannot be moved.
    pub fn put(folder: &Path) -> io::Result<Self> {
        let aside = folder.with_extension("aside");
        if aside.exists() {
            fs::remove_dir_all(&aside)?;
        }
        fs::rename(folder, &aside)?;
        super::super::compiled::make(folder)?;
        Ok(Self { folder: folder.to_owned(), aside })
    }

    /// It was to blame, or was not: then it takes its place again.
    ///
    /// # Errors
    /// Where a folder cannot be removed or moved.
    pub fn end(self, to_blame: bool) -> io::Result<()> {
        if to_blame {
            return fs::remove_dir_all(&self.aside);
        }
        fs::remove_dir_all(&self.folder)?;
        fs::rename(&self.aside, &self.folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::Model;
    use crate::onnx::proto::{GraphProto, ModelProto};

    const FILE: &str = "CANNExecutionProvider_blochd_1_2_0_3.om";

    #[test]
    fn a_graph_gets_a_name_of_its_own_and_is_otherwise_what_it_was() {
        let graph = GraphProto { name: Some("g".to_owned()), ..Default::default() };
        let proto =
            ModelProto { ir_version: Some(8), graph: Some(graph).into(), ..Default::default() };
        let bytes = Bytes::from(Model::from_proto(proto).unwrap().encode_inline().unwrap());
        let read = |bytes: &Bytes| Model::decode(bytes.clone()).unwrap();
        let name = |bytes: &Bytes| read(bytes).graph().name.clone().unwrap();
        let first = named(&bytes, Digest::of(b"weights"), "npu");
        assert!(name(&first).starts_with("blochd_") && name(&first).len() == 7 + 64);
        assert_eq!(read(&first).proto().ir_version, Some(8));
        let others = [
            named(&bytes, Digest::of(b"others"), "npu"),
            named(&bytes, Digest::of(b"weights"), "x"),
        ];
        assert!(others.iter().all(|other| name(other) != name(&first)));
        assert_eq!(named(&bytes, Digest::of(b"weights"), "npu"), first);
    }

    #[test]
    fn what_was_compiled_of_one_model_is_shown_while_it_is_loaded_and_no_longer() {
        let dir = tempfile::tempdir().unwrap();
        let (kept, here) = (dir.path().join("kept"), dir.path().join("here"));
        fs::create_dir(&kept).unwrap();
        fs::create_dir(&here).unwrap();
        fs::write(kept.join(FILE), "om").unwrap();
        fs::write(kept.join("kernel.log"), "x").unwrap();
        // Of an agent that was killed.
        symlink(dir.path().join("gone"), here.join(format!("old_{FILE}"))).unwrap();
        let shown = Shown::new(&kept, &here).unwrap();
        assert!(!shown.is_empty() && is_shown(&here.join(FILE), &kept));
        assert!(!is_shown(&here.join(FILE), &here));
        assert_eq!(fs::read_dir(&here).unwrap().count(), 1);
        drop(shown);
        assert_eq!(fs::read_dir(&here).unwrap().count(), 0);
        assert!(kept.join(FILE).exists());
        // What is no link is never removed, and in the way.
        fs::write(here.join(FILE), "mine").unwrap();
        assert!(Shown::new(&kept, &here).is_err() && here.join(FILE).exists());
    }

    #[test]
    fn what_was_put_aside_comes_back_unless_it_was_to_blame() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("model");
        for to_blame in [false, true] {
            let _ = fs::remove_dir_all(&folder);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join(FILE), "old").unwrap();
            let aside = Aside::put(&folder).unwrap();
            assert!(folder.is_dir() && !is_there(&folder));
            fs::write(folder.join(FILE), "new").unwrap();
            aside.end(to_blame).unwrap();
            let left = fs::read_to_string(folder.join(FILE)).unwrap();
            assert_eq!(left, if to_blame { "new" } else { "old" });
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }
}
