//! Reads the JSON reports of lvs and vgs into typed rows.
//!
//! lvm2 prints advice and warnings to standard output, before, after and sometimes inside the JSON
//! (lvm2 issue 137). Its JSON has one element a line, so lines that cannot be JSON are left out.
//! Every value is a string; numbers come in bytes without a suffix because that is how we ask.

use crate::error::{Context, Error, Kind, Result};
use serde_json::{Map, Value};

/// Columns of an [`Lv`], as `lvs -o` takes them.
pub const LV_COLUMNS: &str = "lv_name,vg_name,lv_path,lv_uuid,lv_size,lv_attr,origin,lv_tags,pool_lv,data_percent,metadata_percent,\
snap_percent,segtype,lv_active,lv_device_open,lv_snapshot_invalid,lv_kernel_major,lv_kernel_minor";

/// Columns of a [`Vg`], as `vgs -o` takes them.
pub const VG_COLUMNS: &str = "vg_name,vg_size,vg_free,vg_extent_size";

/// A logical volume as lvs tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct Lv {
    /// Its volume group.
    pub vg: String,
    /// Its name within the group.
    pub name: String,
    /// Its device node; empty for what has none, such as a thin pool.
    pub path: String,
    /// Its LVM UUID.
    pub uuid: String,
    /// Size in bytes; of a classic snapshot, the size of its COW store.
    pub bytes: u64,
    /// The ten attribute letters.
    pub attr: String,
    /// The volume this is a snapshot of; empty for none.
    pub origin: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// Its thin pool; empty for none.
    pub pool: String,
    /// Of a pool or thin volume: data space used.
    pub data_percent: Option<f64>,
    /// Of a pool: metadata space used.
    pub metadata_percent: Option<f64>,
    /// Of a classic snapshot: COW space used.
    pub snap_percent: Option<f64>,
    /// `linear`, `thin`, `raid1`, …
    pub segtype: String,
    /// Its device exists.
    pub active: bool,
    /// Somebody has its device open, a mount for example.
    pub open: bool,
    /// A classic snapshot that overflowed.
    pub invalid: bool,
    /// Device number, when active.
    pub device: Option<(u32, u32)>,
}

impl Lv {
    /// `vg/lv`, as lvm2 commands take it.
    pub fn label(&self) -> String {
        format!("{}/{}", self.vg, self.name)
    }

    /// Has exactly this tag.
    pub fn has_tag(&self, tag: &str) -> bool {
        self.tags.iter().any(|have| have == tag)
    }

    /// The rest of the first tag that begins so.
    pub fn tag_value(&self, prefix: &str) -> Option<&str> {
        self.tags.iter().find_map(|tag| tag.strip_prefix(prefix))
    }

    /// A thin volume, snapshots of thin volumes included.
    pub fn is_thin(&self) -> bool {
        self.segtype == "thin"
    }

    /// A classic snapshot, which cannot have snapshots itself.
    pub fn is_classic_snapshot(&self) -> bool {
        self.attr.starts_with(['s', 'S'])
    }
}

/// A volume group as vgs tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct Vg {
    /// Its name.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Unallocated bytes.
    pub free_bytes: u64,
    /// Its unit of allocation.
    pub extent_bytes: u64,
}

/// The rows of an lvs report.
pub fn logical_volumes(text: &str) -> Result<Vec<Lv>> {
    rows(text, "lv")?.iter().map(|row| Row { kind: "lvs", row }.lv()).collect()
}

/// The rows of a vgs report.
pub fn volume_groups(text: &str) -> Result<Vec<Vg>> {
    rows(text, "vg")?.iter().map(|row| Row { kind: "vgs", row }.vg()).collect()
}

/// All rows of one kind, in all reports of the document.
fn rows(text: &str, kind: &str) -> Result<Vec<Map<String, Value>>> {
    let document = document(text)?;
    let reports = document.get("report").and_then(Value::as_array).ok_or_else(|| unreadable("without a report"))?;
    let rows = reports.iter().filter_map(|report| report.get(kind)).filter_map(Value::as_array).flatten();
    rows.map(|row| row.as_object().cloned().ok_or_else(|| unreadable("with a row that is no object"))).collect()
}

fn document(text: &str) -> Result<Value> {
    if let Ok(value) = serde_json::from_str(text) {
        return Ok(value);
    }
    let json: String = text.lines().filter(|line| may_be_json(line)).flat_map(|line| [line, "\n"]).collect();
    serde_json::from_str(&json).context(Kind::Snapshot, || format!("read an lvm2 report ({})", excerpt(text)))
}

/// A line of lvm2's JSON begins with one of these; advice begins with a word.
fn may_be_json(line: &str) -> bool {
    line.trim_start().starts_with(['{', '}', '[', ']', '"', ','])
}

fn excerpt(text: &str) -> String {
    let short: String = text.trim().chars().take(80).collect();
    if short.is_empty() { "empty".to_owned() } else { format!("begins `{}`", short.replace('\n', " ")) }
}

fn unreadable(how: &str) -> Error {
    Error::new(Kind::Snapshot, format!("lvm2 printed a report {how}"))
}

/// One row on its way to a type.
struct Row<'a> {
    kind: &'static str,
    row: &'a Map<String, Value>,
}

impl Row<'_> {
    fn lv(&self) -> Result<Lv> {
        let number = |column| self.optional(column).and_then(|text| text.parse::<u32>().ok());
        Ok(Lv {
            vg: self.text("vg_name")?,
            name: self.text("lv_name")?.trim_matches(['[', ']']).to_owned(), // hidden volumes come in brackets
            path: self.text("lv_path")?,
            uuid: self.text("lv_uuid")?,
            bytes: self.bytes("lv_size")?,
            attr: self.text("lv_attr")?,
            origin: self.text("origin")?.trim_matches(['[', ']']).to_owned(),
            tags: self.text("lv_tags")?.split(',').filter(|tag| !tag.is_empty()).map(str::to_owned).collect(),
            pool: self.text("pool_lv")?.trim_matches(['[', ']']).to_owned(),
            data_percent: self.percent("data_percent"),
            metadata_percent: self.percent("metadata_percent"),
            snap_percent: self.percent("snap_percent"),
            segtype: self.text("segtype")?,
            active: self.flag("lv_active", "active"),
            open: self.flag("lv_device_open", "open"),
            invalid: self.flag("lv_snapshot_invalid", "snapshot invalid"),
            device: number("lv_kernel_major").zip(number("lv_kernel_minor")), // -1 when inactive
        })
    }

    fn vg(&self) -> Result<Vg> {
        Ok(Vg {
            name: self.text("vg_name")?,
            bytes: self.bytes("vg_size")?,
            free_bytes: self.bytes("vg_free")?,
            extent_bytes: self.bytes("vg_extent_size")?,
        })
    }

    /// The value as text. Newer reports have real numbers where older ones have strings.
    fn optional(&self, column: &str) -> Option<String> {
        match self.row.get(column)? {
            Value::String(text) => Some(text.trim().to_owned()),
            Value::Number(number) => Some(number.to_string()),
            Value::Array(words) => Some(words.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")),
            _ => Some(String::new()),
        }
    }

    fn text(&self, column: &str) -> Result<String> {
        self.optional(column).ok_or_else(|| unreadable(&format!("of {} without the column {column}", self.kind)))
    }

    fn bytes(&self, column: &str) -> Result<u64> {
        let text = self.text(column)?;
        let digits = text.strip_suffix('B').unwrap_or(&text);
        digits.parse().context(Kind::Snapshot, || format!("lvm2 printed `{text}` as {column}"))
    }

    fn percent(&self, column: &str) -> Option<f64> {
        self.optional(column).and_then(|text| text.parse().ok()).filter(|percent: &f64| percent.is_finite())
    }

    /// Flags come as their name, or as 1 where `report/binary_values_as_numeric` is set.
    fn flag(&self, column: &str, word: &str) -> bool {
        self.optional(column).is_some_and(|text| text == word || text == "1")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Captured from lvm2 2.03.16 by the case `lvm-reports` of vm-tests.
    const LVS: &str = include_str!("captured/lvs.json");
    const OVERFLOWED: &str = include_str!("captured/lvs-overflowed.json");
    const NONE: &str = include_str!("captured/lvs-none.json");
    const VGS: &str = include_str!("captured/vgs.json");

    fn find(name: &str) -> Lv {
        logical_volumes(LVS).unwrap().into_iter().find(|lv| lv.name == name).unwrap()
    }

    #[test]
    fn a_classic_snapshot_and_its_origin() {
        let (source, snapshot) = (find("src"), find("snap"));
        assert_eq!((source.label().as_str(), source.bytes, source.path.as_str()), ("vg/src", 64 << 20, "/dev/vg/src"));
        assert!(source.active && source.device.is_some() && source.origin.is_empty() && !source.is_thin());
        assert_eq!((snapshot.origin.as_str(), snapshot.bytes), ("src", 16 << 20));
        assert!(snapshot.is_classic_snapshot() && !source.is_classic_snapshot());
        assert!(snapshot.has_tag("blockferry") && !source.has_tag("blockferry"));
        assert_eq!(snapshot.tag_value("blockferry.run="), Some("r1"));
        assert!(snapshot.snap_percent.unwrap() > 12.0 && !snapshot.invalid);
    }

    #[test]
    fn a_thin_volume_and_its_sleeping_snapshot() {
        let (thin, snapshot, pool) = (find("thin"), find("thinsnap"), find("pool"));
        assert!(thin.is_thin() && snapshot.is_thin() && !snapshot.is_classic_snapshot());
        assert_eq!((thin.pool.as_str(), snapshot.origin.as_str()), ("pool", "thin"));
        assert!(!snapshot.active);
        assert_eq!(snapshot.device, None);
        assert!(pool.data_percent.is_some() && pool.metadata_percent.is_some() && pool.path.is_empty());
    }

    #[test]
    fn an_open_volume_is_seen() {
        assert!(!find("src").open);
        assert!(find("mounted").open);
    }

    #[test]
    fn an_overflowed_snapshot_is_invalid() {
        let lv = &logical_volumes(OVERFLOWED).unwrap()[0];
        assert!(lv.invalid);
        assert_eq!(lv.snap_percent, Some(100.0));
    }

    #[test]
    fn nothing_found_is_an_empty_list() {
        assert!(logical_volumes(NONE).unwrap().is_empty());
    }

    #[test]
    fn a_volume_group() {
        let vg = &volume_groups(VGS).unwrap()[0];
        assert_eq!((vg.name.as_str(), vg.extent_bytes), ("vg", 4 << 20));
        assert!(vg.free_bytes > 0 && vg.free_bytes < vg.bytes);
    }

    #[test]
    fn json_with_numbers_and_lists_reads_the_same() {
        let text = LVS
            .replace("\"lv_size\":\"67108864\"", "\"lv_size\":67108864")
            .replace("\"blockferry,blockferry.run=r1\"", "[\"blockferry\",\"blockferry.run=r1\"]");
        assert_ne!(text, LVS);
        let sorted = |text: &str| logical_volumes(text).unwrap();
        assert_eq!(sorted(&text), sorted(LVS));
    }

    #[test]
    fn what_is_no_report_is_an_error_with_an_excerpt() {
        assert!(logical_volumes("").unwrap_err().chain().contains("empty"));
        let error = logical_volumes("  Volume group \"x\" not found\n").unwrap_err();
        assert!(error.chain().contains("begins `Volume group"), "{}", error.chain());
        assert!(logical_volumes("{\"report\":[{\"lv\":[{}]}]}").unwrap_err().chain().contains("without the column"));
    }

    proptest! {
        #[test]
        fn advice_anywhere_between_the_lines_changes_nothing(at in prop::collection::vec(0usize..16, 1..4), advice in "[ ]{0,2}[A-Z][a-zA-Z .,:%/{}\"]{0,60}") {
            let mut lines: Vec<&str> = LVS.lines().collect();
            for at in at {
                lines.insert(at.min(lines.len()), &advice);
            }
            prop_assert_eq!(logical_volumes(&lines.join("\n")).unwrap(), logical_volumes(LVS).unwrap());
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,300}") {
            let _ = logical_volumes(&text);
        }
    }
}
