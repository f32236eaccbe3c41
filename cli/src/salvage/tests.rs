use afterimage_protocol::{BlockRange, Generation, Sequence, Time, VolumeIndex};
use afterimage_storage::disk::RealDir;
use afterimage_storage::group::VolumeFile;
use afterimage_storage::io::{Dir, Open};
use afterimage_storage::salvage::save;
use tempfile::TempDir;

use super::*;
use crate::args::SalvageTarget;
use crate::exit::Exit;

const BLOCK: usize = 4096;
const A_BYTES: u64 = 64 << 20;
const B_BYTES: u64 = 4608;

fn head() -> Head {
    Head {
        time: Time(1_790_000_000_000_000),
        generation: Generation(0x5f0c),
        replaced_by: Generation(0x77aa),
        left_at: Sequence(42),
        volumes: vec![("a".into(), A_BYTES), ("b".into(), B_BYTES)],
    }
}

/// A host with one salvage file: of volume a block 1 (zeroes) and blocks 2 to 3, of volume b its short last block.
struct Saved {
    temp: TempDir,
    file: PathBuf,
}

impl Saved {
    fn make() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("state/groups/orders/salvage");
        fs::create_dir_all(&path).unwrap();
        let scratch = RealDir::open(temp.path()).unwrap();
        let volumes: Vec<VolumeFile> = head()
            .volumes
            .iter()
            .map(|(name, size)| {
                let file = scratch.open(name, Open::New).unwrap();
                file.set_len(*size).unwrap();
                file
            })
            .collect();
        volumes[0].write_at(&[7; 2 * BLOCK], 2 * BLOCK as u64).unwrap();
        volumes[1].write_at(&[9; 512], BLOCK as u64).unwrap();
        let blocks = |volume, first, count| BlockRange { volume: VolumeIndex(volume), first, count };
        let blocks = [blocks(0, 1, 1), blocks(0, 2, 2), blocks(1, 1, 1)];
        let dir = RealDir::open(&path).unwrap();
        let name = save(&dir, &head(), &volumes, blocks.into_iter()).unwrap().name.unwrap();
        Self { file: path.join(name), temp }
    }

    fn config(&self) -> Config {
        let state = self.temp.path().join("state");
        let text = format!(
            "[node]\nname = \"alpha\"\nstate_dir = {state:?}\n[peer]\nname = \"beta\"\naddress = \"beta:7789\"\n\
             [group.orders]\nprimary = \"alpha\"\n[[group.orders.volume]]\nname = \"a\"\ndevice = \"/a\"\n"
        );
        Config::parse(&text, "a.toml").unwrap()
    }

    /// Cuts the file in its last piece.
    fn cut(&self) {
        let whole = fs::read(&self.file).unwrap();
        fs::write(&self.file, &whole[..whole.len() - 60]).unwrap();
    }

    fn export(&self, image: Option<&str>, blocks: Option<&str>) -> Result<(), CommandError> {
        let place = |name: &str| self.temp.path().join(name);
        let to = SalvageTarget { image: image.map(place), blocks: blocks.map(place) };
        self.export_until(to, false)
    }

    fn export_until(&self, to: SalvageTarget, stopped: bool) -> Result<(), CommandError> {
        let args = SalvageExportArgs { file: self.file.clone(), to, json: true };
        export_until(&args, &AtomicBool::new(stopped))
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.temp.path().join(name)).unwrap()
    }
}

/// The bytes of volume a as saved, and zeroes elsewhere.
fn image_of_a() -> Vec<u8> {
    let mut image = vec![0; A_BYTES as usize];
    image[2 * BLOCK..4 * BLOCK].fill(7);
    image
}

#[test]
fn an_image_has_the_bytes_at_their_places_and_holes_elsewhere() {
    use std::os::unix::fs::MetadataExt;
    let saved = Saved::make();
    saved.export(Some("out"), None).unwrap();
    assert!(saved.read("out/a.img") == image_of_a());
    let mut b = vec![0; B_BYTES as usize];
    b[BLOCK..].fill(9);
    assert!(saved.read("out/b.img") == b);
    let blocks = fs::metadata(saved.temp.path().join("out/a.img")).unwrap().blocks();
    assert!(blocks * 512 < 1 << 20, "{blocks}");
}

#[test]
fn nothing_is_overwritten_and_nothing_is_left_of_a_refused_export() {
    let saved = Saved::make();
    fs::create_dir(saved.temp.path().join("out")).unwrap();
    fs::write(saved.temp.path().join("out/b.img"), "mine").unwrap();
    let error = saved.export(Some("out"), None).unwrap_err();
    assert_eq!(error.exit, Exit::Failed);
    assert!(error.message.contains("b.img exists already"), "{error:?}");
    assert_eq!(saved.read("out/b.img"), b"mine");
    assert!(!saved.temp.path().join("out/a.img").exists());
    let error = saved.export(None, Some("out")).unwrap_err();
    assert!(error.message.contains("out exists already"), "{error:?}");
}

#[test]
fn an_interrupted_export_leaves_nothing_of_its_own_behind() {
    let saved = Saved::make();
    let (images, list) = (saved.temp.path().join("images"), saved.temp.path().join("list"));
    fs::create_dir(&images).unwrap();
    fs::write(images.join("notes.txt"), "mine").unwrap();
    for to in [
        SalvageTarget { image: Some(images.clone()), blocks: None },
        SalvageTarget { image: None, blocks: Some(list.clone()) },
    ] {
        let error = saved.export_until(to, true).unwrap_err();
        assert_eq!(error.exit, Exit::Failed);
        assert!(error.message.starts_with("interrupted: nothing was exported"), "{error:?}");
    }
    assert_eq!(names(&images).unwrap(), ["notes.txt"]);
    assert!(!list.exists());
    // The same place can be named again.
    saved.export(Some("images"), None).unwrap();
    assert!(saved.read("images/a.img") == image_of_a());
}

#[test]
fn a_block_list_points_to_the_bytes() {
    let saved = Saved::make();
    saved.export(None, Some("out")).unwrap();
    assert_eq!(
        String::from_utf8(saved.read("out/blocks.tsv")).unwrap(),
        "# afterimage salvage blocks 1\n# volume\ta\t67108864\n# volume\tb\t4608\n\
         a\t4096\t4096\t-\na\t8192\t8192\t0\nb\t4096\t512\t8192\n"
    );
    assert_eq!(saved.read("out/data"), [vec![7; 2 * BLOCK], vec![9; 512]].concat());
}

#[test]
fn what_is_whole_in_front_of_the_damage_is_exported_and_the_exit_says_so() {
    let saved = Saved::make();
    saved.cut();
    let error = saved.export(Some("out"), None).unwrap_err();
    assert_eq!(error.exit, Exit::Failed);
    assert!(error.message.contains("cut short after 2 pieces"), "{error:?}");
    assert!(saved.read("out/a.img") == image_of_a());
    assert!(saved.read("out/b.img").iter().all(|byte| *byte == 0));
    // Without a head there is nothing to export, and nothing is made.
    fs::write(&saved.file, "rubbish").unwrap();
    let error = saved.export(Some("other"), None).unwrap_err();
    assert!(error.message.ends_with("nothing was exported"), "{error:?}");
    assert!(!saved.temp.path().join("other").exists());
}

#[test]
fn a_volume_name_cannot_lead_out_of_the_directory() {
    for name in ["../a", "..", "", "a\nb"] {
        let mut head = head();
        head.volumes[0].0 = name.to_owned();
        assert!(volume_names(&head).is_err(), "{name:?}");
    }
    assert_eq!(volume_names(&head()).unwrap(), ["a", "b"]);
}

#[test]
fn a_damaged_file_is_listed_and_hides_no_other() {
    let saved = Saved::make();
    let dir = saved.file.parent().unwrap();
    fs::write(dir.join("0000000000000001-1.salvage"), "rubbish").unwrap();
    fs::copy(&saved.file, dir.join("ffffffffffffffff-1.salvage")).unwrap();
    fs::write(dir.join("ffffffffffffffff-2.salvage.unfinished"), "").unwrap();
    fs::write(dir.join("notes.txt"), "").unwrap();
    saved.cut();
    let found = find(&saved.config(), None).unwrap();
    let states: Vec<_> = found.iter().map(|found| (found.wholeness, found.pieces, found.bytes())).collect();
    assert_eq!(
        states,
        [
            (Wholeness::Damaged, 0, 0),
            (Wholeness::Damaged, 2, 3 * BLOCK as u64),
            (Wholeness::Whole, 3, 3 * BLOCK as u64 + 512),
            (Wholeness::Unfinished, 0, 0),
        ]
    );
    assert_eq!(find(&saved.config(), Some("orders")).unwrap(), found);
    assert_eq!(find(&saved.config(), Some("others")).unwrap_err().exit, Exit::WrongUse);
    assert_eq!(find(&saved.config(), Some("../groups")).unwrap_err().exit, Exit::WrongUse);
}

/// What the golden texts show: a whole file, and one without a head.
fn sample() -> Vec<Found> {
    let volume = |name: &str, size_bytes, bytes| SavedVolume { name: name.to_owned(), size_bytes, bytes };
    let whole = Found {
        file: "/s/whole.salvage".into(),
        group: "orders".to_owned(),
        head: Some(head()),
        pieces: 3,
        volumes: vec![volume("a", A_BYTES, 81_920), volume("b", B_BYTES, 0)],
        wholeness: Wholeness::Whole,
        error: None,
    };
    let bad = Found {
        head: None,
        pieces: 0,
        volumes: Vec::new(),
        wholeness: Wholeness::Damaged,
        error: Some("it is damaged".to_owned()),
        file: "/s/bad.salvage".into(),
        ..whole.clone()
    };
    vec![whole, bad]
}

#[test]
fn the_list_reads_well() {
    assert_eq!(
        render::list(&sample()),
        "\
GROUP   SAVED                        GENERATION        REPLACED BY       BYTES   STATE
orders  2026-09-21T14:13:20.000000Z  0000000000005f0c  00000000000077aa  80 KiB  whole
  /s/whole.salvage
  a 80 KiB, b 0 B; written after sequence 42, or may have been
orders  ?                            ?                 ?                 ?       DAMAGED
  /s/bad.salvage
  ! it is damaged
"
    );
    assert_eq!(render::list(&[]), "nothing was saved on this host\n");
}

#[test]
fn the_list_for_programs_keeps_its_shape() {
    let printed: serde_json::Value = serde_json::from_str(&render::list_json(&sample())).unwrap();
    let whole = serde_json::json!({
        "file": "/s/whole.salvage",
        "group": "orders",
        "time_us": 1_790_000_000_000_000_u64,
        "generation": "0000000000005f0c",
        "replaced_by": "00000000000077aa",
        "left_at_sequence": 42,
        "pieces": 3,
        "saved_bytes": 81_920,
        "volumes": [
            { "name": "a", "size_bytes": 67_108_864, "saved_bytes": 81_920 },
            { "name": "b", "size_bytes": 4608, "saved_bytes": 0 },
        ],
        "state": "whole",
        "error": null,
    });
    assert_eq!(printed["version"], 1);
    assert_eq!(printed["salvage"][0], whole);
    assert_eq!(printed["salvage"][1]["generation"], serde_json::Value::Null);
    assert_eq!(printed["salvage"][1]["state"], "damaged");
    assert_eq!(printed["salvage"][1]["saved_bytes"], serde_json::Value::Null);
}

#[test]
fn the_outcome_of_an_export_says_what_was_made() {
    let done = Exported { files: vec!["/o/a.img".into()], pieces: 2, bytes: 81_920, damage: None };
    assert_eq!(render::export(&done), "80 KiB in 2 pieces exported to\n  /o/a.img\n");
    let done = Exported { damage: Some("damaged".to_owned()), ..done };
    let printed: serde_json::Value = serde_json::from_str(&render::export_json(&done)).unwrap();
    let expected = serde_json::json!({ "version": 1, "export": {
        "files": ["/o/a.img"], "pieces": 2, "exported_bytes": 81_920, "whole": false, "error": "damaged",
    } });
    assert_eq!(printed, expected);
}
