//! User side of the exit of `inet_put_port`.

use guard_common::{INET_PUT_PORT, Settings};

use super::BpfError;
use super::settings::KernelTypes;

/// Has `tcp_destroy_sock` leave the release of listeners to this one.
///
/// # Errors
///
/// When the kernel lets nobody hook the function, or its types are unknown.
pub(super) fn fit(types: &KernelTypes, settings: &mut Settings) -> Result<(), BpfError> {
    types.hook_function(&INET_PUT_PORT)?;
    types.resolve_functions(&INET_PUT_PORT, settings)?;
    types.resolve_sock(&guard_common::tcp_destroy_sock::EVENT, settings)?;
    settings.observe_put = 1;
    Ok(())
}
