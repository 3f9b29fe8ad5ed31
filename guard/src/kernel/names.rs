//! What users and interfaces are called.

use std::io;

use guard_core::model::Uid;

/// The number of a network interface in the calling thread's network namespace.
///
/// # Errors
///
/// When there is none of that name.
pub fn interface_index(name: &str) -> io::Result<u32> {
    Ok(nix::net::if_::if_nametoindex(name)?)
}

/// The user id of a user name; `None` when nobody has it.
///
/// # Errors
///
/// When the user database cannot be read.
pub fn user_id(name: &str) -> io::Result<Option<Uid>> {
    Ok(nix::unistd::User::from_name(name)?.map(|user| Uid(user.uid.as_raw())))
}

/// The group id of a group name; `None` when no group has it.
///
/// # Errors
///
/// When the group database cannot be read.
pub fn group_id(name: &str) -> io::Result<Option<u32>> {
    Ok(nix::unistd::Group::from_name(name)?.map(|group| group.gid.as_raw()))
}
