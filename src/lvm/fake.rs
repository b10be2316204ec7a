//! lvm2 on paper: a few volumes, and every command that was run. For the tests of this room.

use crate::error::{Error, Kind, Result};
use crate::lvm::command::Tools;
use crate::lvm::volume::Volume;
use std::sync::{Arc, Mutex};

/// A volume group `vg` of 1000 GiB with what the test puts into it.
#[derive(Default)]
pub struct Fake {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rows: Vec<Row>,
    free_gib: u64,
    commands: Vec<String>,
    failures: Vec<(&'static str, &'static str)>,
}

/// One volume, as far as the tests look.
#[derive(Clone, Default)]
pub struct Row {
    pub name: String,
    pub tags: String,
    pub origin: String,
    pub pool: String,
    pub attr: String,
    pub percent: String,
    pub inactive: bool,
    pub invalid: bool,
    pub bytes: u64,
}

impl Row {
    pub fn new(name: &str) -> Row {
        Row { name: name.to_owned(), attr: "-wi-a-----".to_owned(), bytes: 100 << 30, ..Row::default() }
    }

    fn json(&self) -> String {
        let Row { name, tags, origin, pool, attr, percent, bytes, .. } = self;
        let segtype = if pool.is_empty() { "linear" } else { "thin" };
        let active = if self.inactive { "" } else { "active" };
        let invalid = if self.invalid { "snapshot invalid" } else { "" };
        format!(
            r#"{{"lv_name":"{name}","vg_name":"vg","lv_path":"/dev/vg/{name}","lv_uuid":"uuid-of-{name}","lv_size":"{bytes}","lv_attr":"{attr}","origin":"{origin}","lv_tags":"{tags}","pool_lv":"{pool}","data_percent":"{percent}","metadata_percent":"1.00","snap_percent":"{percent}","segtype":"{segtype}","lv_active":"{active}","lv_device_open":"","lv_snapshot_invalid":"{invalid}","lv_kernel_major":"-1","lv_kernel_minor":"-1"}}"#
        )
    }
}

impl Fake {
    pub fn new(free_gib: u64, rows: &[Row]) -> Arc<Fake> {
        Arc::new(Fake { state: Mutex::new(State { rows: rows.to_vec(), free_gib, ..State::default() }) })
    }

    /// The next command that begins so fails with these words on its stderr.
    pub fn fail_once(&self, command: &'static str, words: &'static str) {
        self.state.lock().unwrap().failures.push((command, words));
    }

    /// Changes a volume behind the program's back.
    pub fn change(&self, name: &str, how: impl FnOnce(&mut Row)) {
        how(self.state.lock().unwrap().rows.iter_mut().find(|row| row.name == name).unwrap());
    }

    /// Removes a volume behind the program's back.
    pub fn lose(&self, name: &str) {
        self.state.lock().unwrap().rows.retain(|row| row.name != name);
    }

    pub fn names(&self) -> Vec<String> {
        self.state.lock().unwrap().rows.iter().map(|row| row.name.clone()).collect()
    }

    /// The commands that changed something, or tried to.
    pub fn changes(&self) -> Vec<String> {
        let commands = self.state.lock().unwrap().commands.clone();
        commands.into_iter().filter(|line| !line.starts_with("lvs ") && !line.starts_with("vgs ")).collect()
    }

    pub fn volume(self: &Arc<Fake>, name: &str) -> Volume {
        Volume::find_with(self.clone(), &format!("vg/{name}")).unwrap().unwrap()
    }
}

impl Tools for Fake {
    fn need_device_mapper(&self) -> Result<()> {
        Ok(())
    }

    fn lvm(&self, args: &[&str]) -> Result<String> {
        let mut state = self.state.lock().unwrap();
        let line = args.join(" ");
        state.commands.push(line.clone());
        if let Some(at) = state.failures.iter().position(|(command, _)| line.starts_with(command)) {
            let (_, words) = state.failures.remove(at);
            return Err(Error::new(Kind::Snapshot, words));
        }
        let after = |flag: &str| args.iter().position(|arg| *arg == flag).map(|at| args[at + 1]);
        match args[0] {
            "lvs" => {
                let rows: Vec<String> = state.rows.iter().filter(|row| selected(row, after("-S").unwrap())).map(Row::json).collect();
                Ok(format!("{{\"report\":[{{\"lv\":[\n{}\n]}}]}}", rows.join("\n,")))
            }
            "vgs" => Ok(format!(
                "{{\"report\":[{{\"vg\":[{{\"vg_name\":\"vg\",\"vg_size\":\"{}\",\"vg_free\":\"{}\",\"vg_extent_size\":\"4194304\"}}]}}]}}",
                1000u64 << 30,
                state.free_gib << 30
            )),
            "lvcreate" => {
                let origin = args[args.len() - 1].trim_start_matches("vg/").to_owned();
                let tags = args.windows(2).filter(|pair| pair[0] == "--addtag").map(|pair| pair[1]).collect::<Vec<_>>().join(",");
                let pool = state.rows.iter().find(|row| row.name == origin).unwrap().pool.clone();
                let attr = if pool.is_empty() { "sri-a-s---" } else { "Vri-a-t--k" };
                let bytes = after("-L").map_or(100 << 30, |text| text.trim_end_matches('b').parse().unwrap());
                let name = after("-n").unwrap();
                if state.rows.iter().any(|row| row.name == name) {
                    return Err(Error::new(Kind::Snapshot, format!("Logical Volume \"{name}\" already exists in volume group \"vg\"")));
                }
                let row = Row { tags, origin, pool, attr: attr.to_owned(), bytes, ..Row::new(name) };
                state.rows.push(row);
                Ok(String::new())
            }
            "lvextend" => {
                let name = args[args.len() - 1].trim_start_matches("vg/");
                let step: u64 = after("-L").unwrap().trim_start_matches('+').trim_end_matches('b').parse().unwrap();
                state.rows.iter_mut().find(|row| row.name == name).unwrap().bytes += step;
                Ok(String::new())
            }
            "lvremove" => {
                let select = after("-S").unwrap().to_owned();
                state.rows.retain(|row| !selected(row, &select));
                Ok(String::new())
            }
            other => panic!("lvm2 on paper knows no {other}"),
        }
    }
}

/// The selections this room makes: equalities joined by `&&`.
fn selected(row: &Row, select: &str) -> bool {
    select.split(" && ").all(|term| {
        let (column, value) = term.split_once('=').unwrap();
        let value = value.trim_matches('"');
        match column {
            "vg_name" => value == "vg",
            "lv_name" => value == row.name,
            "lv_uuid" => value == format!("uuid-of-{}", row.name),
            "lv_tags" => row.tags.split(',').any(|tag| tag == value),
            other => panic!("lvm2 on paper cannot select by {other}"),
        }
    })
}
