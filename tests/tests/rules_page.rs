//! `docs/rules.md` has a section for each rule of the core, in their order.

use std::path::Path;

use afterimage_protocol::rules::Rule;

#[test]
fn every_rule_has_its_section() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/rules.md");
    let page = std::fs::read_to_string(page).unwrap();
    let found: Vec<_> = page.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let wanted: Vec<_> =
        Rule::ALL.iter().map(|(_, number, name)| format!("{number} \u{b7} `{name}`")).collect();
    assert_eq!(found, wanted);
}
