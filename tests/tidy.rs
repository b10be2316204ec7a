//! The house keeps its plan: imports go down, `unsafe` stays in one room, every format version has its
//! golden file and its page, every named crash point exists. Nothing here counts lines or judges taste.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms by floor, as in `src/lib.rs`. A new room gets its floor there and here.
const FLOORS: [&[&str]; 7] = [
    &["error", "limits", "extent", "digest", "identity", "pin", "progress", "failpoint", "settings", "log", "part"],
    &["format", "ring", "schedule", "program"],
    &["disk", "transport", "lvm", "state"],
    &["sender", "receiver"],
    &["attempt"],
    &["agent", "serve"],
    &["cli"],
];

/// A source file without its comments and without its `#[cfg(test)]` module; lines keep their numbers.
struct Source {
    path: PathBuf,
    /// The first part of the path below `src`: `sender`, `error`, …
    room: String,
    code: String,
}

impl Source {
    fn place(&self, offset: usize) -> String {
        format!("{}:{}", self.path.display(), self.code[..offset].matches('\n').count() + 1)
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files_under(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the source tree is readable").flatten() {
        let path = entry.path();
        if path.is_dir() { files_under(&path, found) } else { found.push(path) }
    }
    found.sort();
}

fn rust_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    files_under(&root().join("src"), &mut files);
    files.retain(|path| path.extension().is_some_and(|ending| ending == "rs"));
    files
}

fn sources() -> Vec<Source> {
    let read = |path: PathBuf| {
        let below = path.strip_prefix(root()).expect("it is below the root").to_owned();
        let room = below.iter().nth(1).expect("it is below src").to_string_lossy();
        let room = room.trim_end_matches(".rs").to_owned();
        Source { room, code: code_of(&fs::read_to_string(&path).expect("sources are UTF-8")), path: below }
    };
    rust_files().into_iter().map(read).collect()
}

/// Blanks out comments and test modules. rustfmt closes a module at the first `}` in the first column.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let (mut attribute, mut testing) = (false, false);
    for line in text.lines() {
        let opens = attribute && line.starts_with("mod ");
        attribute = line.starts_with("#[cfg(test)]");
        let shown = if testing || opens { "" } else { line.split("//").next().unwrap_or("") };
        testing = (testing || (opens && line.ends_with('{'))) && line != "}";
        code.push_str(shown);
        code.push('\n');
    }
    code
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Where `word` stands as a word of its own.
fn words(code: &str, word: &str) -> Vec<usize> {
    let bytes = code.as_bytes();
    let alone = |at: &usize| (*at == 0 || !is_word(bytes[at - 1])) && bytes.get(at + word.len()).is_none_or(|next| !is_word(*next));
    code.match_indices(word).map(|(at, _)| at).filter(alone).collect()
}

/// The rooms that follow a `crate::`: one name, or the heads of a `{list, of::paths}`.
fn rooms_after(code: &str) -> Vec<String> {
    let name = |text: &str| text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let Some(list) = code.strip_prefix('{') else { return vec![name(code)] };
    let (mut rooms, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                rooms.push(name(&list[start..at]));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    rooms.retain(|room| !room.is_empty());
    rooms
}

fn floor_of(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

/// What is wrong with an import from one room into another, if anything.
fn objection(from: &str, to: &str) -> Option<String> {
    let (Some(own), Some(other)) = (floor_of(from), floor_of(to)) else {
        return Some(format!("`{to}` is no room of the plan: give it a floor in src/lib.rs and tests/tidy.rs"));
    };
    match () {
        () if from == to || other < own || (own == 0 && other == 0) => None,
        () if other == own => Some(format!("{from} → {to}: both are on floor {own} and may not know each other")),
        () => Some(format!("{from} → {to}: from floor {own} up to floor {other}")),
    }
}

#[test]
fn imports_only_go_down() {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| !["lib", "main"].contains(&source.room.as_str())) {
        if floor_of(&source.room).is_none() {
            broken.push(format!("{}: {} has no floor in src/lib.rs and tests/tidy.rs", source.path.display(), source.room));
            continue;
        }
        for (at, found) in source.code.match_indices("crate::") {
            // `$crate` and `my_crate::` are something else.
            if at > 0 && (is_word(source.code.as_bytes()[at - 1]) || source.code.as_bytes()[at - 1] == b'$') {
                continue;
            }
            for room in rooms_after(&source.code[at + found.len()..]) {
                broken.extend(objection(&source.room, &room).map(|why| format!("{}: {why}", source.place(at))));
            }
        }
    }
    assert!(broken.is_empty(), "imports go down and never sideways:\n{}", broken.join("\n"));
}

#[test]
fn the_import_reader_sees_what_is_there() {
    assert_eq!(rooms_after("disk::raw::RawDisk;"), ["disk"]);
    assert_eq!(rooms_after("{disk::{raw, ram}, error::Result,\n    state};"), ["disk", "error", "state"]);
    assert_eq!(objection("sender", "disk"), None);
    assert_eq!(objection("digest", "limits"), None);
    assert!(objection("sender", "receiver").is_some_and(|why| why.contains("sender → receiver")));
    assert!(objection("state", "disk").is_some_and(|why| why.contains("floor 2")));
    assert!(objection("format", "state").is_some_and(|why| why.contains("up to")));
    assert!(objection("disk", "utils").is_some());
    let text = "use crate::a;\n// crate::b\n#[cfg(test)]\nmod tests {\n    use crate::c;\n}\nuse crate::d;\n";
    assert_eq!(code_of(text), "use crate::a;\n\n#[cfg(test)]\n\n\n\nuse crate::d;\n");
}

#[test]
fn the_plan_in_lib_rs_names_every_room() {
    let plan = fs::read_to_string(root().join("src/lib.rs")).expect("src/lib.rs");
    let rooms: BTreeSet<String> =
        sources().into_iter().map(|source| source.room).filter(|room| !["lib", "main"].contains(&room.as_str())).collect();
    for room in rooms {
        let floor = floor_of(&room).unwrap_or_else(|| panic!("{room} has no floor in tests/tidy.rs"));
        let row = plan.lines().find(|line| line.starts_with(&format!("//! | {floor} |"))).expect("a row for each floor");
        assert!(row.contains(&format!("`{room}`")), "src/lib.rs does not name `{room}` on floor {floor}");
    }
}

#[test]
fn unsafe_stays_in_the_ring() {
    for source in sources().iter().filter(|source| source.room != "ring") {
        let found: Vec<String> = words(&source.code, "unsafe").into_iter().map(|at| source.place(at)).collect();
        assert!(found.is_empty(), "unsafe code belongs into src/ring alone: {}", found.join(", "));
    }
}

#[test]
fn every_file_opens_with_its_purpose() {
    for path in rust_files() {
        let text = fs::read_to_string(&path).expect("sources are UTF-8");
        assert!(text.starts_with("//!"), "{} does not begin with //!", path.display());
    }
}

/// `(format, version)` of everything that claims one: `const VERSION: u16 = 1` and `const VERSIONS … = 1..=1`.
fn versions() -> Vec<(String, u32)> {
    let mut all = Vec::new();
    for source in sources().iter().filter(|source| source.room == "format") {
        let stem = source.path.file_stem().expect("a file has a name").to_string_lossy().into_owned();
        for line in source.code.lines().filter(|line| line.contains("const VERSION")) {
            let value = line.split('=').skip(1).collect::<Vec<_>>().join("=");
            let numbers: Vec<u32> = value.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
            let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else { panic!("no version in `{line}`") };
            all.extend((*first..=*last).map(|version| (stem.clone(), version)));
        }
    }
    all
}

#[test]
fn every_format_version_has_a_golden_file_and_a_page() {
    let versions = versions();
    let formats: BTreeSet<&str> = versions.iter().map(|(stem, _)| stem.as_str()).collect();
    assert_eq!(formats, BTreeSet::from(["journal", "lane", "manifest", "stream"]), "the formats of src/format");
    let mut golden = Vec::new();
    files_under(&root().join("tests/golden"), &mut golden);
    for (stem, version) in &versions {
        let wanted = format!("{stem}-v{version}");
        let there = golden.iter().any(|path| path.file_stem().is_some_and(|name| name.to_string_lossy() == wanted));
        assert!(there, "tests/golden/{wanted}.* is missing: BLOCKFERRY_BLESS=1 cargo test --test golden writes it");
        assert!(root().join(format!("docs/format/{stem}.md")).exists(), "docs/format/{stem}.md is missing");
    }
}

#[test]
fn every_crash_point_is_listed_and_reached() {
    let mut reached: BTreeMap<String, String> = BTreeMap::new();
    for source in sources().iter().filter(|source| source.room != "failpoint") {
        for (at, call) in source.code.match_indices("reach(\"") {
            let name = source.code[at + call.len()..].split('"').next().unwrap_or_default().to_owned();
            reached.insert(name, source.place(at));
        }
    }
    for (name, place) in &reached {
        assert!(blockferry::failpoint::ALL.contains(&name.as_str()), "{place}: {name} is missing in failpoint::ALL");
    }
    let listed: BTreeSet<&str> = blockferry::failpoint::ALL.iter().copied().collect();
    assert_eq!(listed.len(), blockferry::failpoint::ALL.len(), "failpoint::ALL names an instant twice");
    for name in listed {
        assert!(reached.contains_key(name), "failpoint::ALL lists {name}, which nothing reaches");
    }
}

/// docs/SECURITY.md names `file::test` for each lie: the file lies in tests or somewhere in src.
#[test]
fn every_lie_that_the_page_names_has_its_test() {
    let page = fs::read_to_string(root().join("docs/SECURITY.md")).expect("docs/SECURITY.md");
    let table = page.split("## Peers who lie").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("the table of lies");
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| lie |")).collect();
    assert!(rows.len() >= 20, "the table of lies has {} rows", rows.len());
    let mut files = rust_files();
    files_under(&root().join("tests"), &mut files);
    for row in rows {
        let named = row.rsplit('|').nth(1).and_then(|cell| cell.trim().strip_prefix('`')?.strip_suffix('`'));
        let (stem, test) = named.and_then(|name| name.split_once("::")).unwrap_or_else(|| panic!("no test in `{row}`"));
        let is_there = files.iter().filter(|path| path.file_stem().is_some_and(|name| name == stem)).any(|path| {
            let text = fs::read_to_string(path).unwrap_or_default();
            text.contains(&format!("#[test]\nfn {test}()")) || text.contains(&format!("    #[test]\n    fn {test}()"))
        });
        assert!(is_there, "docs/SECURITY.md names {stem}::{test}, which is no test");
    }
}
