//! Rust source → the same lines with comments and the insides of literals blanked out, and without
//! what is compiled for tests only. No parser: what the rules look for needs none.

/// One file as the rules see it. Both texts have the lines and columns of the source.
pub struct Source {
    /// Code alone.
    pub code: String,
    /// Comments alone.
    pub comments: String,
}

/// Separates code from comments; literals keep their quotes.
pub fn separate(text: &str) -> Source {
    let chars: Vec<char> = text.chars().collect();
    let mut scan = Scan { chars: &chars, at: 0, code: String::new(), comments: String::new() };
    while scan.at < chars.len() {
        scan.step();
    }
    Source { code: scan.code, comments: scan.comments }
}

struct Scan<'a> {
    chars: &'a [char],
    at: usize,
    code: String,
    comments: String,
}

impl Scan<'_> {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn take(&mut self, is_code: bool, is_comment: bool) {
        let Some(c) = self.peek(0) else { return };
        let or_blank = |keep: bool| if keep || c == '\n' { c } else { ' ' };
        self.code.push(or_blank(is_code));
        self.comments.push(or_blank(is_comment));
        self.at += 1;
    }

    fn step(&mut self) {
        match (self.peek(0), self.peek(1)) {
            (Some('/'), Some('/')) => {
                while self.peek(0).is_some_and(|c| c != '\n') {
                    self.take(false, true);
                }
            }
            (Some('/'), Some('*')) => self.block_comment(),
            (Some('"'), _) => self.string(0),
            (Some('r' | 'b' | 'c'), _) if self.raw_or_bytes() => {}
            (Some('\''), _) => self.character_or_lifetime(),
            _ => self.take(true, false),
        }
    }

    fn block_comment(&mut self) {
        let mut depth = 0;
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some('/'), Some('*')) => depth += 1,
                (Some('*'), Some('/')) => depth -= 1,
                (None, _) => return,
                _ => {
                    self.take(false, true);
                    continue;
                }
            }
            self.take(false, true);
            self.take(false, true);
            if depth == 0 {
                return;
            }
        }
    }

    /// A string whose quote stands at the current place; raw ones end at `"` and `hashes` hashes.
    fn string(&mut self, hashes: usize) {
        self.take(true, false);
        while let Some(c) = self.peek(0) {
            if c == '\\' && hashes == 0 {
                self.take(false, false);
            } else if c == '"' && (1..=hashes).all(|n| self.peek(n) == Some('#')) {
                self.take(true, false);
                return;
            }
            self.take(false, false);
        }
    }

    /// `r"…"`, `br#"…"#`, `b"…"`, `b'…'`; raw identifiers and names are left alone.
    fn raw_or_bytes(&mut self) -> bool {
        let after_name = self.at > 0
            && (self.chars[self.at - 1].is_alphanumeric() || self.chars[self.at - 1] == '_');
        if after_name {
            return false;
        }
        let mut ahead = 0;
        while matches!(self.peek(ahead), Some('b' | 'c' | 'r')) && ahead < 2 {
            ahead += 1;
        }
        let raw = self.peek(ahead - 1) == Some('r');
        let mut hashes = 0;
        while raw && self.peek(ahead + hashes) == Some('#') {
            hashes += 1;
        }
        if self.peek(ahead + hashes) != Some('"') {
            return false;
        }
        for _ in 0..ahead + hashes {
            self.take(true, false);
        }
        if raw && hashes == 0 {
            self.raw_string();
        } else {
            self.string(hashes);
        }
        true
    }

    /// `r"…"`: no escapes, no hashes.
    fn raw_string(&mut self) {
        self.take(true, false);
        while self.peek(0).is_some_and(|c| c != '"') {
            self.take(false, false);
        }
        self.take(true, false);
    }

    fn character_or_lifetime(&mut self) {
        let is_character = self.peek(1) == Some('\\') || self.peek(2) == Some('\'');
        self.take(true, false);
        if !is_character {
            return;
        }
        while let Some(c) = self.peek(0) {
            if c == '\\' {
                self.take(false, false);
            } else if c == '\'' {
                self.take(true, false);
                return;
            }
            self.take(false, false);
        }
    }
}

/// Blanks items behind `#[cfg(test)]`; gives back the names of modules declared there by `mod x;`.
pub fn without_tests(code: &str) -> (String, Vec<String>) {
    let mut chars: Vec<char> = code.chars().collect();
    let mut modules = Vec::new();
    let mut at = 0;
    while let Some(start) = find(&chars, at, "#[cfg(test)]") {
        let end = item_end(&chars, start);
        let item: String = chars[start..end].iter().collect();
        let mut words = item["#[cfg(test)]".len()..].split_whitespace().skip_while(|w| *w != "mod");
        if let (Some(_), Some(name)) = (words.next(), words.next())
            && let Some(name) = name.strip_suffix(';')
        {
            modules.push(name.to_owned());
        }
        chars[start..end].iter_mut().filter(|c| **c != '\n').for_each(|c| *c = ' ');
        at = end;
    }
    (chars.into_iter().collect(), modules)
}

fn find(chars: &[char], from: usize, what: &str) -> Option<usize> {
    let what: Vec<char> = what.chars().collect();
    (from..chars.len()).find(|at| chars[*at..].starts_with(&what))
}

/// The end of the item that begins at `start`: behind its `;`, or behind the brace that closes it.
pub fn item_end(chars: &[char], start: usize) -> usize {
    let mut depth = 0i32;
    for (at, c) in chars.iter().enumerate().skip(start) {
        match c {
            '{' | '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            '}' => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    chars.len()
}

/// A path in code (`use` trees unfolded) and the line, from 1, in which it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodePath {
    pub line: usize,
    pub segments: Vec<String>,
    /// Whether it is called without arguments.
    pub called_empty: bool,
}

/// All paths of two segments or more.
pub fn paths(code: &str) -> Vec<CodePath> {
    let chars: Vec<char> = code.chars().collect();
    let (mut found, mut at, mut line) = (Vec::new(), 0, 1);
    while at < chars.len() {
        let c = chars[at];
        let starts = is_name(c) && !c.is_ascii_digit();
        if starts {
            let mut behind = at;
            path(&chars, &mut behind, &[], line, &mut found);
            line += chars[at..behind].iter().filter(|c| **c == '\n').count();
            at = behind;
        } else {
            line += usize::from(c == '\n');
            at += 1;
        }
    }
    found.retain(|path| path.segments.len() > 1);
    found
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn blanks(chars: &[char], at: &mut usize) {
    while chars.get(*at).is_some_and(|c| c.is_whitespace()) {
        *at += 1;
    }
}

fn path(chars: &[char], at: &mut usize, prefix: &[String], line: usize, found: &mut Vec<CodePath>) {
    let mut segments = prefix.to_vec();
    loop {
        let from = *at;
        while chars.get(*at).is_some_and(|c| is_name(*c)) {
            *at += 1;
        }
        segments.push(chars[from..*at].iter().collect());
        if chars.get(*at) != Some(&':') || chars.get(*at + 1) != Some(&':') {
            break;
        }
        match chars.get(*at + 2) {
            Some('{') => {
                *at += 3;
                group(chars, at, &segments, line, found);
                return;
            }
            Some(c) if is_name(*c) => *at += 2,
            _ => break,
        }
    }
    let mut behind = *at;
    if chars[behind..].starts_with(&[':', ':', '<']) {
        let mut depth = 0;
        behind += 2;
        while let Some(c) = chars.get(behind) {
            depth += i32::from(*c == '<') - i32::from(*c == '>');
            behind += 1;
            if depth == 0 {
                break;
            }
        }
    }
    let called_empty = chars[behind..].starts_with(&['(', ')']);
    found.push(CodePath { line, segments, called_empty });
}

fn group(
    chars: &[char],
    at: &mut usize,
    prefix: &[String],
    line: usize,
    found: &mut Vec<CodePath>,
) {
    loop {
        blanks(chars, at);
        match chars.get(*at) {
            None => return,
            Some('}') => {
                *at += 1;
                return;
            }
            Some(c) if is_name(*c) => {
                path(chars, at, prefix, line, found);
                // `name as other`
                blanks(chars, at);
                while chars.get(*at).is_some_and(|c| !matches!(c, ',' | '}')) {
                    *at += 1;
                }
            }
            Some(_) => *at += 1,
        }
    }
}
