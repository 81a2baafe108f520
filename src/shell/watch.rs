//! The model directory: events that say "look again", and the listing itself.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use crate::arrivals::FileFact;
use crate::limits;

/// Watches `dir` and everything below it; `look` is notified of every change. Reads are not changes: our
/// own loading of a model must not trigger itself.
///
/// # Errors
/// Where the directory cannot be watched; periodic listings find its files all the same.
pub fn watch(dir: &Path, look: Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let handler = move |event: notify::Result<notify::Event>| {
        let changed = match event {
            Ok(event) => !matches!(event.kind, EventKind::Access(_)),
            // An overflowing queue loses events: look.
            Err(_) => true,
        };
        if changed {
            look.notify_one();
        }
    };
    let mut watcher = notify::recommended_watcher(handler)?;
    watcher.watch(dir, RecursiveMode::Recursive)?;
    Ok(watcher)
}

/// Watches one file in its folder, since editors and fleets replace it, and the folder of its parts, where that
/// is there; `changed` is notified of what may have changed them. What else lies in the file's folder, or below
/// it, raises nothing: the agent's own log may be there.
///
/// # Errors
/// Where the folder cannot be watched.
pub fn watch_file(
    file: &Path,
    parts: &Path,
    changed: Arc<Notify>,
) -> notify::Result<RecommendedWatcher> {
    // A link may be led elsewhere through another one beside it, as Kubernetes does.
    let link = fs::symlink_metadata(file).is_ok_and(|meta| meta.file_type().is_symlink());
    let name = file.file_name().map(ToOwned::to_owned);
    let folder_of_parts = parts.to_owned();
    let handler = move |event: notify::Result<notify::Event>| {
        let concerned = match event {
            Ok(event) => {
                let named = |path: &PathBuf| {
                    path.file_name() == name.as_deref() || path.starts_with(&folder_of_parts)
                };
                !matches!(event.kind, EventKind::Access(_))
                    && (link || event.need_rescan() || event.paths.iter().any(named))
            }
            // An overflowing queue loses events: look.
            Err(_) => true,
        };
        if concerned {
            changed.notify_one();
        }
    };
    let folder = file.parent().filter(|folder| *folder != Path::new(""));
    let mut watcher = notify::recommended_watcher(handler)?;
    watcher.watch(folder.unwrap_or(Path::new(".")), RecursiveMode::NonRecursive)?;
    if parts.is_dir() {
        watcher.watch(parts, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}

/// Where `path` leads, if that is below `root` (which has no links in it): links are followed within the
/// model directory only.
pub fn inside(root: &Path, path: &Path) -> Option<PathBuf> {
    path.canonicalize().ok().filter(|real| real.starts_with(root))
}

/// What lies below the model directory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    pub files: Vec<FileFact>,
    /// Links that lead elsewhere, with paths relative to the directory.
    pub outside: BTreeSet<String>,
}

/// Lists the regular files below `dir`, with paths relative to it. Links are followed to files that lie
/// below `dir` only; at most [`limits::REPOSITORY_FILES`] files and [`limits::REPOSITORY_DEPTH`] levels.
///
/// # Errors
/// Where `dir` itself cannot be read. What vanishes or cannot be read below it is passed over.
pub fn list(dir: &Path) -> io::Result<Listing> {
    let root = dir.canonicalize()?;
    let mut listing = Listing::default();
    let facts = &mut listing.files;
    let mut open = vec![(root.clone(), String::new(), 0)];
    while let Some((path, prefix, depth)) = open.pop() {
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if depth == 0 => return Err(error),
            Err(_) => continue,
        };
        for entry in entries.flatten() {
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            let relative = format!("{prefix}{name}");
            let inside = inside(&root, &entry.path()).is_some();
            let Ok(meta) = fs::metadata(entry.path()) else { continue };
            if !inside {
                if listing.outside.len() < limits::REPOSITORY_FILES {
                    listing.outside.insert(relative);
                }
                continue;
            }
            if meta.is_dir() && depth < limits::REPOSITORY_DEPTH {
                open.push((entry.path(), format!("{relative}/"), depth + 1));
            } else if meta.is_file() && facts.len() < limits::REPOSITORY_FILES {
                facts.push(FileFact {
                    path: relative,
                    size: meta.len(),
                    modified_ns: i128::from(meta.mtime()) * 1_000_000_000
                        + i128::from(meta.mtime_nsec()),
                    inode: meta.ino(),
                });
            }
        }
    }
    facts.sort();
    Ok(listing)
}
