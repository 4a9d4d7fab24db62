//! stub
use super::report::Report;
use std::path::Path;
/// name
pub const FIGURES: &str = "performance.json";
/// w
pub fn write(folder: &Path, report: &Report) -> anyhow::Result<()> { report.write(&folder.join(FIGURES)) }
