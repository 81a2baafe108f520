//! Ascend, by the provider that is compiled into ONNX Runtime's CANN build.

use std::path::Path;

use ort::ep::{ArbitrarilyConfigurableExecutionProvider, CANN};
use ort::session::builder::SessionBuilder;

use super::Located;
use crate::config::Cann;

/// Asks for the CANN provider. `_cache` is where compiled graphs may be kept.
///
/// # Errors
/// Where the library was built without it, or Ascend's own libraries are missing, or an option is unknown.
pub(super) fn append(
    builder: SessionBuilder,
    cann: &Cann,
    _library: &Located,
    _cache: Option<&Path>,
) -> ort::Result<SessionBuilder> {
    let device = ("device_id".to_owned(), cann.device_id.to_string());
    let options = cann.options.iter().map(|(key, value)| (key.clone(), value.clone()));
    let mut provider = CANN::default();
    for (key, value) in std::iter::once(device).chain(options) {
        provider = provider.with_arbitrary_config(key, value);
    }
    // Without this the runtime would run everything on the CPU and not say a word.
    Ok(builder.with_execution_providers([provider.build().error_on_failure()])?)
}
