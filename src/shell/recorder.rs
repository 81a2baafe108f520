//! Traces on disk: lines that are written by a thread of their own into files of bounded size, of which the
//! oldest go first. What they say is the room `governor`'s.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;

use crate::governor::trace::HEADER;
use crate::limits::{TRACE_FILE_BYTES, TRACE_FILES, TRACE_WAITING};

const PREFIX: &str = "trace-";
const SUFFIX: &str = ".csv";

/// Records lines. The thread ends with it, after the last line.
#[derive(Debug)]
pub struct Recorder {
    dir: PathBuf,
    lines: SyncSender<String>,
}

/// Whether lines were taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    Yes,
    /// The disk is behind: these are lost.
    Lost,
    /// Nothing can be written any more; the reason was told.
    Ended,
}

impl Recorder {
    /// Begins a new file in `dir`, which is made where it is not there.
    ///
    /// # Errors
    /// Where that cannot be done.
    pub fn open(dir: &Path) -> io::Result<Self> {
        Self::with_bounds(dir, TRACE_FILE_BYTES, TRACE_FILES)
    }

    fn with_bounds(dir: &Path, bytes: u64, files: usize) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let mut writer = Writer::begin(dir.to_owned(), bytes, files)?;
        let (lines, waiting): (_, Receiver<String>) = sync_channel(TRACE_WAITING);
        thread::Builder::new().name("trace".to_owned()).spawn(move || {
            for text in waiting {
                if let Err(error) = writer.write(&text) {
                    let dir = writer.dir.display();
                    tracing::error!("the trace in {dir} is not recorded any more: {error}");
                    return;
                }
            }
        })?;
        Ok(Self { dir: dir.to_owned(), lines })
    }

    /// Where it records.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Has whole lines written, without waiting for the disk.
    pub fn record(&self, text: String) -> Taken {
        match self.lines.try_send(text) {
            Ok(()) => Taken::Yes,
            Err(TrySendError::Full(_)) => Taken::Lost,
            Err(TrySendError::Disconnected(_)) => Taken::Ended,
        }
    }
}

/// The files of a trace, the oldest first. Others that lie beside them are passed over.
///
/// # Errors
/// Where the directory cannot be read.
pub fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(numbered(dir)?.into_iter().map(|(_, path)| path).collect())
}

fn numbered(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = name.strip_prefix(PREFIX).and_then(|name| name.strip_suffix(SUFFIX));
        let digits = number.filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()));
        if let Some(number) = digits.and_then(|number| number.parse().ok()) {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found)
}

/// The file that is written.
struct Writer {
    dir: PathBuf,
    file: File,
    number: u64,
    written: u64,
    bytes: u64,
    files: usize,
}

impl Writer {
    fn begin(dir: PathBuf, bytes: u64, files: usize) -> io::Result<Self> {
        let last = numbered(&dir)?.last().map_or(0, |(number, _)| *number);
        let number = last.saturating_add(1);
        let (file, written) = create(&dir, number)?;
        let writer = Self { dir, file, number, written, bytes, files };
        writer.drop_oldest()?;
        Ok(writer)
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        if self.written + text.len() as u64 > self.bytes {
            self.number = self.number.saturating_add(1);
            (self.file, self.written) = create(&self.dir, self.number)?;
            self.drop_oldest()?;
        }
        self.file.write_all(text.as_bytes())?;
        self.written += text.len() as u64;
        Ok(())
    }

    fn drop_oldest(&self) -> io::Result<()> {
        let all = numbered(&self.dir)?;
        let surplus = all.len().saturating_sub(self.files);
        all.iter().take(surplus).try_for_each(|(_, path)| fs::remove_file(path))
    }
}

/// A new file with its header, and its length.
fn create(dir: &Path, number: u64) -> io::Result<(File, u64)> {
    let path = dir.join(format!("{PREFIX}{number:08}{SUFFIX}"));
    let mut file = File::create_new(path)?;
    let header = format!("{HEADER}\n");
    file.write_all(header.as_bytes())?;
    Ok((file, header.len() as u64))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::governor::trace::{Row, Trace};

    fn line(t_s: f64) -> String {
        Row { t_s, model: "m".to_owned(), arrivals: 1, ..Row::default() }.line()
    }

    /// The thread has written all once the recorder is gone and the last line is there.
    fn written(dir: &Path, last: &str) -> Vec<String> {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let texts: Vec<String> =
                files(dir).unwrap().iter().map(|path| fs::read_to_string(path).unwrap()).collect();
            if texts.last().is_some_and(|text| text.ends_with(last)) {
                return texts;
            }
            assert!(Instant::now() < end, "{texts:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn files_are_bounded_and_the_oldest_go_first() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("new/traces");
        fs::create_dir_all(&dir).unwrap();
        for other in ["trace-x.csv", "trace-.csv", "mine.csv"] {
            fs::write(dir.join(other), "kept").unwrap();
        }
        let most = HEADER.len() as u64 + 1 + 4 * line(10.0).len() as u64;
        let recorder = Recorder::with_bounds(&dir, most, 3).unwrap();
        for second in 10..50 {
            while recorder.record(line(f64::from(second))) == Taken::Lost {
                thread::sleep(Duration::from_millis(5));
            }
        }
        drop(recorder);
        let texts = written(&dir, &line(49.0));
        assert_eq!(texts.len(), 3);
        assert!(texts.iter().all(|text| text.len() as u64 <= most));
        // Joined, they are one table: 12 lines at most, and the newest.
        let rows = Trace::parse(&texts.concat()).unwrap().models.remove("m").unwrap();
        assert!((9..=12).contains(&rows.len()), "{}", rows.len());
        assert_eq!(rows.last().map(|row| row.t_s), Some(49.0));
        assert_eq!(fs::read_to_string(dir.join("trace-x.csv")).unwrap(), "kept");
        // The next start begins another file.
        let recorder = Recorder::with_bounds(&dir, most, 3).unwrap();
        assert_eq!(recorder.record(line(50.0)), Taken::Yes);
        drop(recorder);
        let texts = written(&dir, &line(50.0));
        assert_eq!((texts.len(), texts[2].lines().count()), (3, 2));
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_an_error() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(Recorder::open(&file.join("below")).is_err());
    }
}
