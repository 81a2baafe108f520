//! Looks at the box: reads what the kernel shows and hands it to the parsers of `hardware`; finds accelerators,
//! and asks their vendors' libraries, which are loaded while the program runs and never linked with it.

mod ascend;
mod cambricon;
pub mod detect;
mod host;
mod identities;
mod kunlunxin;
mod library;
pub mod roofline;
pub mod source;

pub use host::HostProbe;
