//! Events, the transparency log's layout, and its verification (DESIGN.md section 7).

pub mod event;
