//! Looks at the box: reads what the kernel shows and hands it to the parsers of `hardware`.

mod host;

pub use host::HostProbe;
