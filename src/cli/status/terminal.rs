//! A terminal that is drawn on in place, and is afterwards as it was before.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

use super::live::{Line, Style};

/// Another screen, no cursor, no wrapping of lines that turn out wider than they were counted.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";
/// The size of a terminal that does not tell.
const SIZE: (usize, usize) = (80, 24);
/// Ctrl-C and Ctrl-D, which are characters here.
const ENDS: [u8; 4] = [b'q', b'Q', 3, 4];

/// A signal that ends the program was sent.
static ENDED: AtomicBool = AtomicBool::new(false);

extern "C" fn end(_signal: nix::libc::c_int) {
    ENDED.store(true, Ordering::Relaxed);
}

/// Interrupts the wait; the next frame takes the new size.
extern "C" fn resized(_signal: nix::libc::c_int) {}

/// What came of a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// The time is over.
    Passed,
    /// The terminal may have another size.
    Resized,
    /// Somebody wants to leave.
    Leave,
}

pub struct Terminal {
    /// The settings of the keyboard before; `None` where standard input is no terminal.
    before: Option<Termios>,
    /// The lines that stand there.
    shown: Vec<Line>,
    size: (usize, usize),
    colours: bool,
}

impl Terminal {
    /// Takes the terminal of standard output over, and the keyboard where standard input is one.
    ///
    /// # Errors
    /// Where its settings can neither be read nor set.
    pub fn enter() -> io::Result<Self> {
        for (signal, handler) in [
            (Signal::SIGINT, end as extern "C" fn(nix::libc::c_int)),
            (Signal::SIGTERM, end),
            (Signal::SIGHUP, end),
            (Signal::SIGWINCH, resized),
        ] {
            let action =
                SigAction::new(SigHandler::Handler(handler), SaFlags::empty(), SigSet::empty());
            // SAFETY: the handlers store to an atomic at most, which a handler may.
            unsafe { sigaction(signal, &action) }?;
        }
        let keyboard = io::stdin();
        let before = if keyboard.is_terminal() { Some(tcgetattr(&keyboard)?) } else { None };
        if let Some(before) = &before {
            let mut ours = before.clone();
            // Keys come one at a time, unseen, Ctrl-C among them.
            ours.local_flags &= !(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG);
            tcsetattr(&keyboard, SetArg::TCSANOW, &ours)?;
        }
        let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let terminal = Self { before, shown: Vec::new(), size: (0, 0), colours };
        let mut out = io::stdout().lock();
        out.write_all(ENTER.as_bytes())?;
        out.flush()?;
        Ok(terminal)
    }

    /// Columns and rows, as they are now.
    pub fn size(&self) -> (usize, usize) {
        let told = terminal_size::terminal_size_of(io::stdout());
        let told = told.map(|(width, height)| (usize::from(width.0), usize::from(height.0)));
        told.filter(|(width, height)| *width > 0 && *height > 0).unwrap_or(SIZE)
    }

    /// Shows these lines in place of those before.
    ///
    /// # Errors
    /// Where the terminal has gone.
    pub fn draw(&mut self, lines: Vec<Line>) -> io::Result<()> {
        let size = self.size();
        if size != self.size {
            self.size = size;
            self.shown.clear();
        }
        let text = redraw(&self.shown, &lines, self.colours);
        self.shown = lines;
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// Waits for `time` to pass or a key to leave by.
    ///
    /// # Errors
    /// Where the keyboard cannot be read.
    pub fn wait(&self, time: Duration) -> io::Result<Waited> {
        let until = Instant::now() + time;
        loop {
            if ENDED.load(Ordering::Relaxed) {
                return Ok(Waited::Leave);
            }
            let left = until.saturating_duration_since(Instant::now());
            let keyboard = io::stdin();
            let mut keys = [PollFd::new(keyboard.as_fd(), PollFlags::POLLIN)];
            let watched: &mut [PollFd<'_>] =
                if self.before.is_some() { &mut keys } else { &mut [] };
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(watched, timeout) {
                Ok(0) => return Ok(Waited::Passed),
                Err(Errno::EINTR) if ENDED.load(Ordering::Relaxed) => return Ok(Waited::Leave),
                Err(Errno::EINTR) => return Ok(Waited::Resized),
                Err(error) => return Err(error.into()),
                Ok(_) => {
                    let mut keys = [0u8; 64];
                    let count = keyboard.lock().read(&mut keys)?;
                    // None at all: the terminal was closed.
                    if count == 0 || keys[..count].iter().any(|key| ENDS.contains(key)) {
                        return Ok(Waited::Leave);
                    }
                }
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Whatever fails here, the terminal has gone.
        let mut out = io::stdout().lock();
        let _ = out.write_all(LEAVE.as_bytes()).and_then(|()| out.flush());
        if let Some(before) = &self.before {
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, before);
        }
    }
}

/// What brings a terminal that shows `before` to show `now`: only lines that differ are written, so that
/// nothing flickers. After nothing, all is cleared.
fn redraw(before: &[Line], now: &[Line], colours: bool) -> String {
    let mut text = String::new();
    if before.is_empty() {
        text.push_str("\x1b[2J");
    }
    for (row, line) in now.iter().enumerate() {
        if before.get(row) == Some(line) {
            continue;
        }
        let code = match line.style {
            Style::Strong => "1",
            Style::Dim => "2",
            Style::Alarm => "1;31",
            Style::Plain => "",
        };
        text.push_str(&format!("\x1b[{};1H", row + 1));
        if colours && !code.is_empty() {
            text.push_str(&format!("\x1b[{code}m{}\x1b[0m", line.text));
        } else {
            text.push_str(&line.text);
        }
        // To the end of the line.
        text.push_str("\x1b[K");
    }
    if before.len() > now.len() {
        text.push_str(&format!("\x1b[{};1H\x1b[J", now.len() + 1));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str, style: Style) -> Line {
        Line { text: text.to_owned(), style }
    }

    #[test]
    fn only_what_differs_is_drawn_again() {
        let first = [line("a", Style::Strong), line("b", Style::Plain), line("c", Style::Alarm)];
        let all = [
            "\x1b[2J",
            "\x1b[1;1H\x1b[1ma\x1b[0m\x1b[K",
            "\x1b[2;1Hb\x1b[K",
            "\x1b[3;1H\x1b[1;31mc\x1b[0m\x1b[K",
        ];
        assert_eq!(redraw(&[], &first, true), all.concat());
        assert_eq!(redraw(&first, &first, true), "");
        let next = [line("a", Style::Strong), line("B", Style::Plain)];
        assert_eq!(redraw(&first, &next, true), "\x1b[2;1HB\x1b[K\x1b[3;1H\x1b[J");
        // The same words in another style are another line.
        let dim = [line("a", Style::Dim)];
        assert_eq!(redraw(&first[..1], &dim, false), "\x1b[1;1Ha\x1b[K");
    }
}
