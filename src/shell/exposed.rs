//! Whether anybody else can have put code into a file or into its place: one rule for all libraries whose code
//! is to run with this program's rights, which differ in what vouches for them.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What vouches for a file, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trust {
    /// The operator, who names it: whoever owns it. Vendors' installers do give their files to users of their
    /// own.
    Named,
    /// That it lies where the vendor puts it: it must belong to root or to this user.
    Found,
    /// Its hash, which holds as long as nobody but root and this user can exchange it, on the whole way to it.
    Pinned,
}

/// Who can change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Everybody,
    /// The group of this number.
    Group(u32),
    /// The user of this number, whose it is.
    Owner(u32),
}

/// What on the way to a file, it included, others could change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposed {
    pub part: PathBuf,
    pub by: By,
}

/// Looks at a file and the folders that it lies in, from the inside out. `path` has no links on the way, `user`
/// is whom this program runs as.
///
/// # Errors
/// Where one of them cannot be looked at.
pub fn exposed(path: &Path, trust: Trust, user: u32) -> io::Result<Option<Exposed>> {
    const EVERYBODY_WRITES: u32 = 0o002;
    const GROUP_WRITES: u32 = 0o020;
    const STICKY: u32 = 0o1000;
    for part in path.ancestors() {
        let found = fs::symlink_metadata(part)?;
        // Where the sticky bit is set, as on /tmp, only owners exchange what is theirs.
        let sticky = found.is_dir() && found.mode() & STICKY != 0;
        // A group of the same number as its user is the user's own, by the custom of most distributions.
        let own_group = found.gid() == 0 || found.gid() == user;
        let owns = [0, user].contains(&found.uid());
        let is_file = part == path;
        let by = if found.mode() & EVERYBODY_WRITES != 0 && !sticky {
            Some(By::Everybody)
        } else if trust >= Trust::Pinned
            && found.mode() & GROUP_WRITES != 0
            && !own_group
            && !sticky
        {
            Some(By::Group(found.gid()))
        } else if !owns && (trust >= Trust::Pinned || (trust == Trust::Found && is_file)) {
            Some(By::Owner(found.uid()))
        } else {
            None
        };
        if let Some(by) = by {
            return Ok(Some(Exposed { part: part.to_owned(), by }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_file_that_others_could_exchange_is_told_by_what_they_could_change() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let (folder, file) = (root.join("folder"), root.join("folder/lib.so"));
        fs::create_dir(&folder).unwrap();
        fs::write(&file, "x").unwrap();
        let user = file.metadata().unwrap().uid();
        let all = [Trust::Named, Trust::Found, Trust::Pinned];
        let of = |trust| exposed(&file, trust, user).unwrap();
        let everybody = |part: &Path| Some(Exposed { part: part.to_owned(), by: By::Everybody });
        mode(&folder, 0o755);
        mode(&file, 0o644);
        assert_eq!(all.map(of), [None, None, None]);
        mode(&file, 0o646);
        assert_eq!(all.map(of), [everybody(&file), everybody(&file), everybody(&file)]);
        mode(&file, 0o644);
        mode(&folder, 0o777);
        assert_eq!(all.map(of), [everybody(&folder), everybody(&folder), everybody(&folder)]);
        // Others may put files there, and not exchange this one.
        mode(&folder, 0o1777);
        assert_eq!(all.map(of), [None, None, None]);
        if user != 0 {
            return;
        }
        // Only the superuser can give files away.
        let give = |path: &Path, owner: u32, group: u32| {
            let (owner, group) =
                (nix::unistd::Uid::from_raw(owner), nix::unistd::Gid::from_raw(group));
            nix::unistd::chown(path, Some(owner), Some(group)).unwrap();
        };
        mode(&folder, 0o775);
        give(&folder, 0, 4321);
        let group = Some(Exposed { part: folder.clone(), by: By::Group(4321) });
        assert_eq!(all.map(of), [None, None, group]);
        give(&folder, 0, 0);
        give(&file, 4321, 0);
        let owner = Some(Exposed { part: file.clone(), by: By::Owner(4321) });
        assert_eq!(all.map(of), [None, owner.clone(), owner]);
        give(&file, 0, 0);
        give(&folder, 4321, 0);
        let owner = Some(Exposed { part: folder, by: By::Owner(4321) });
        assert_eq!(all.map(of), [None, None, owner]);
    }
}
