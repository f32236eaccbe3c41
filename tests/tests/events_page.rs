//! `docs/events.md` has a section for each event, in their order, and each is logged somewhere.

use std::fs;
use std::path::{Path, PathBuf};

use afterimage_events::Event;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn every_event_has_its_section() {
    let page = fs::read_to_string(root().join("docs/events.md")).unwrap();
    let sections: Vec<_> = page.split("\n### `").skip(1).collect();
    let found: Vec<_> = sections.iter().filter_map(|section| section.split_once('`')).collect();
    let ids: Vec<_> = found.iter().map(|(id, _)| *id).collect();
    let wanted: Vec<_> = Event::ALL.iter().map(|event| event.id()).collect();
    assert_eq!(ids, wanted);
    for (event, (id, text)) in Event::ALL.iter().zip(found) {
        let level = match event.level().as_str() {
            "ERROR" => "error",
            "WARN" => "warning",
            _ => "info",
        };
        assert!(text.contains(&format!("\n- level: {level}\n")), "{id} is of level {level}");
        assert!(text.contains("\n- do: "), "{id} does not say what to do");
    }
}

/// Not logged, but shown by the status.
const OTHERS: [Event; 1] = [Event::VolumeGrown];

#[test]
fn every_event_is_logged_somewhere() {
    let mut text = String::new();
    for dir in
        ["agent/src", "receiver/src", "transport/src", "storage/src", "metrics/src", "cli/contract/src"]
    {
        read(&root().join(dir), &mut text);
    }
    for event in Event::ALL {
        let name = format!("{event:?}");
        let logged = ["Event::", "Logged::"].iter().any(|path| text.contains(&format!("{path}{name},")));
        assert!(logged || OTHERS.contains(event), "{name} is never logged");
    }
}

fn read(dir: &Path, text: &mut String) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            *text += &fs::read_to_string(&path).unwrap();
        }
    }
}
