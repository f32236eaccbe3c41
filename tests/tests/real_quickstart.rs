//! The quickstart, typed as it stands.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use tests::real::walkthrough::{Page, Site, walk};

const SYSTEMCTL: &str = env!("CARGO_BIN_EXE_systemctl-stand-in");

#[test]
fn the_quickstart_works_as_it_is_written() -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/quickstart.md");
    let page = Page::parse(&fs::read_to_string(path).context("read the page")?)?;
    let mut site = Site::new(Path::new(SYSTEMCTL))?;
    if let Err(error) = walk(&page, |side, commands, limit| site.type_in(side, commands, limit)) {
        bail!("{error:#}\n{}", site.logs());
    }
    site.check_disk()
}
