//! Rust source as the layer rules see it: code without comments, literals and test items.
//!
//! This is a scanner, not a parser. It knows just enough of the language to
//! never take a comment, a string or a test for product code, and to flatten
//! `use` trees into paths.

/// One file, reduced to what the rules look at. Line numbers are kept.
#[derive(Debug)]
pub(crate) struct Code {
    text: String,
    /// Modules declared as `#[cfg(test)] mod name;`: their files are tests.
    pub(crate) test_modules: Vec<String>,
}

/// A path that the code names, with the line that names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    /// Counted from 1.
    pub(crate) line: usize,
    /// The segments, for example `["crate", "kernel", "pidfd"]`.
    pub(crate) segments: Vec<String>,
}

impl Code {
    /// Blanks everything that is not product code.
    pub(crate) fn product(source: &str) -> Self {
        let (text, test_modules) = without_tests(&blank_literals(source));
        Self { text, test_modules }
    }

    /// Blanks comments and literals only: for files that are tests themselves.
    pub(crate) fn all(source: &str) -> Self {
        Self { text: blank_literals(source), test_modules: Vec::new() }
    }

    /// The lines, counted from 1.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }

    /// Every path: the imported ones flattened, and those written in place.
    pub(crate) fn paths(&self) -> Vec<Path> {
        let tokens = tokens(&self.text);
        let mut paths = Vec::new();
        let mut at = 0;
        while at < tokens.len() {
            let (line, token) = &tokens[at];
            if token == "use" {
                at = use_tree(&tokens, at + 1, &[], &mut paths);
            } else if is_ident(token) && !continues_a_path(&tokens, at) {
                let mut segments = vec![token.clone()];
                let mut end = at + 1;
                while end + 1 < tokens.len() && tokens[end].1 == "::" && is_ident(&tokens[end + 1].1) {
                    segments.push(tokens[end + 1].1.clone());
                    end += 2;
                }
                if segments.len() > 1 {
                    paths.push(Path { line: *line, segments });
                }
                at = end;
            } else {
                at += 1;
            }
        }
        paths
    }

    /// Names that a `use` or `mod` of this file brings into scope from the crate
    /// itself: `procfs::x` is then not about the external crate `procfs`.
    pub(crate) fn local_names(&self) -> Vec<String> {
        let tokens = tokens(&self.text);
        let mut names: Vec<String> = tokens
            .windows(2)
            .filter(|pair| pair[0].1 == "mod" && is_ident(&pair[1].1))
            .map(|pair| pair[1].1.clone())
            .collect();
        for (at, (_, token)) in tokens.iter().enumerate() {
            if token == "use" {
                let mut imported = Vec::new();
                use_tree(&tokens, at + 1, &[], &mut imported);
                let own = |path: &&Path| matches!(path.segments[0].as_str(), "crate" | "super" | "self");
                names.extend(imported.iter().filter(own).filter_map(|path| path.segments.last().cloned()));
            }
        }
        names
    }
}

fn continues_a_path(tokens: &[(usize, String)], at: usize) -> bool {
    at >= 2 && tokens[at - 1].1 == "::" && is_ident(&tokens[at - 2].1)
}

/// Flattens the tree that starts at `at`; returns the position after it.
fn use_tree(tokens: &[(usize, String)], mut at: usize, prefix: &[String], paths: &mut Vec<Path>) -> usize {
    let mut segments = prefix.to_vec();
    let line = tokens.get(at).map_or(0, |(line, _)| *line);
    while let Some((_, token)) = tokens.get(at) {
        match token.as_str() {
            "::" => at += 1,
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|(_, token)| token != "}") {
                    let after = use_tree(tokens, at, &segments, paths);
                    at = after.max(at + 1);
                    if tokens.get(at).is_some_and(|(_, token)| token == ",") {
                        at += 1;
                    }
                }
                return at + 1;
            }
            // The alias is a name, not a segment.
            "as" => at += 2,
            name if is_ident(name) || name == "*" => {
                segments.push(name.to_owned());
                at += 1;
            }
            _ => break,
        }
    }
    if segments.len() > prefix.len() {
        // `use a::{self}` names `a`.
        if segments.len() > 1 && segments.last().is_some_and(|last| last == "self") {
            segments.pop();
        }
        paths.push(Path { line, segments });
    }
    at
}

fn is_ident(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Words, `::` as one token, every other visible character as one.
fn tokens(text: &str) -> Vec<(usize, String)> {
    let mut tokens = Vec::new();
    let mut line = 1;
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c == '\n' {
            line += 1;
        } else if c.is_alphanumeric() || c == '_' {
            let mut word = String::from(c);
            while let Some(&next) = rest.peek() {
                if !(next.is_alphanumeric() || next == '_') {
                    break;
                }
                word.push(next);
                rest.next();
            }
            tokens.push((line, word));
        } else if c == ':' && rest.peek() == Some(&':') {
            rest.next();
            tokens.push((line, "::".into()));
        } else if !c.is_whitespace() {
            tokens.push((line, c.into()));
        }
    }
    tokens
}

/// Replaces comments and literals by blanks of the same number of lines.
fn blank_literals(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let mut out = String::with_capacity(source.len());
    let mut at = 0;
    while at < chars.len() {
        let end = match chars[at] {
            '/' if chars.get(at + 1) == Some(&'/') => line_end(&chars, at),
            '/' if chars.get(at + 1) == Some(&'*') => comment_end(&chars, at),
            '"' => string_end(&chars, at),
            'r' if !joins_a_word(&chars, at) => raw_end(&chars, at),
            '\'' => char_end(&chars, at),
            _ => at,
        };
        if end == at {
            out.push(chars[at]);
            at += 1;
            continue;
        }
        // A literal is still something: `f("x")` must not become `f()`-like in a way that joins words.
        out.extend(chars[at..end].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
        at = end;
    }
    out
}

fn joins_a_word(chars: &[char], at: usize) -> bool {
    // `br"…"` is a literal too, so a single leading b does not count as a word.
    let before = |back: usize| at.checked_sub(back).map(|index| chars[index]);
    let word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    match before(1) {
        Some('b' | 'c') => word(before(2)),
        other => word(other),
    }
}

fn line_end(chars: &[char], at: usize) -> usize {
    chars[at..].iter().position(|&c| c == '\n').map_or(chars.len(), |offset| at + offset)
}

fn comment_end(chars: &[char], mut at: usize) -> usize {
    let mut depth = 0;
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => {
                depth += 1;
                at += 2;
            }
            ('*', Some('/')) => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    at
}

fn string_end(chars: &[char], at: usize) -> usize {
    let mut end = at + 1;
    while end < chars.len() {
        match chars[end] {
            '\\' => end += 2,
            '"' => return end + 1,
            _ => end += 1,
        }
    }
    chars.len()
}

/// The end of `r"…"` or `r#"…"#`; `at` itself when it is a raw identifier or a plain r.
fn raw_end(chars: &[char], at: usize) -> usize {
    let hashes = chars[at + 1..].iter().take_while(|&&c| c == '#').count();
    if chars.get(at + 1 + hashes) != Some(&'"') {
        return at;
    }
    let mut end = at + 2 + hashes;
    while end < chars.len() {
        if chars[end] == '"' && chars[end + 1..].iter().take_while(|&&c| c == '#').count() >= hashes {
            return end + 1 + hashes;
        }
        end += 1;
    }
    chars.len()
}

/// The end of a character literal; `at` itself when the quote begins a lifetime.
fn char_end(chars: &[char], at: usize) -> usize {
    match (chars.get(at + 1), chars.get(at + 2)) {
        (Some('\\'), _) => {
            let close = chars[at + 3..].iter().position(|&c| c == '\'');
            close.map_or(chars.len(), |offset| at + 3 + offset + 1)
        }
        (Some(_), Some('\'')) => at + 3,
        _ => at,
    }
}

/// Blanks every item under `#[cfg(test)]`; names the modules that live in files of their own.
fn without_tests(text: &str) -> (String, Vec<String>) {
    const MARK: &str = "#[cfg(test)]";
    let mut out = String::with_capacity(text.len());
    let mut modules = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(MARK) {
        let (before, item) = rest.split_at(start);
        out.push_str(before);
        let end = item_end(item);
        let words: Vec<_> = tokens(&item[MARK.len()..end]);
        if let Some(name) = words.windows(3).find(|three| three[0].1 == "mod" && three[2].1 == ";") {
            modules.push(name[1].1.clone());
        }
        out.extend(item[..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &item[end..];
    }
    out.push_str(rest);
    (out, modules)
}

/// The end of an item: its closing brace, or the semicolon when no brace came before it.
fn item_end(item: &str) -> usize {
    let mut depth = 0_usize;
    // Brackets and parentheses may hold a semicolon: `[u8; 4]`.
    let mut inner = 0_usize;
    for (at, c) in item.char_indices() {
        match c {
            '[' | '(' => inner += 1,
            ']' | ')' => inner = inner.saturating_sub(1),
            '{' => depth += 1,
            '}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at + 1;
                }
            }
            ';' if depth == 0 && inner == 0 => return at + 1,
            _ => {}
        }
    }
    item.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(source: &str) -> Vec<String> {
        Code::product(source).paths().iter().map(|path| path.segments.join("::")).collect()
    }

    #[test]
    fn use_trees_are_flattened() {
        let source = "use crate::{kernel::{pidfd, netns as ns}, model::*};\nuse std::fs::{self, File};";
        let expected =
            ["crate::kernel::pidfd", "crate::kernel::netns", "crate::model::*", "std::fs", "std::fs::File"];
        assert_eq!(paths(source), expected);
    }

    #[test]
    fn paths_in_place_are_found_with_their_line() {
        let code =
            Code::product("fn f() {\n    let x = std::thread::spawn(|| super::super::act::go());\n}\n");
        let found = code.paths();
        assert_eq!(found[0].segments, ["std", "thread", "spawn"]);
        assert_eq!(found[1].segments, ["super", "super", "act", "go"]);
        assert_eq!(found[0].line, 2);
    }

    #[test]
    fn comments_strings_and_lifetimes_are_no_code() {
        let source = r##"
            // std::fs::read
            /* a /* nested */ std::env::var */
            fn f<'a>(x: &'a str) -> char { g("std::net::X", r#"std::io::Y"#); '"' }
            fn h() { real::path(); let q = '\''; other::path() }
        "##;
        assert_eq!(paths(source), ["real::path", "other::path"]);
    }

    #[test]
    fn test_items_are_no_product_code_but_what_follows_is() {
        let source =
            "#[cfg(test)]\nmod tests { fn f() { a::b(); } }\nfn g() { c::d(); }\n#[cfg(test)]\nmod more;\n";
        let code = Code::product(source);
        assert_eq!(code.paths().len(), 1);
        assert_eq!(code.paths()[0].line, 3);
        assert_eq!(code.test_modules, ["more"]);
    }

    #[test]
    fn a_name_of_the_crate_hides_the_external_crate() {
        let names = Code::product("use crate::kernel::{procfs, sock_diag};\nmod local;").local_names();
        assert_eq!(names, ["local", "procfs", "sock_diag"]);
    }
}
