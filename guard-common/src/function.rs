//! Kernel functions that programs are put on. The guard compares their numbers
//! of parameters with the kernel's BTF before it loads anything.

/// A kernel function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: &'static str,
    /// How many parameters it takes: what it returns comes after them.
    pub parameters: usize,
}

/// Gives a full socket's port back: `(sk)`.
pub const INET_PUT_PORT: Function = Function { name: "inet_put_port", parameters: 1 };
/// Ends a mini-socket, whatever for: `(tw)`.
pub const INET_TWSK_KILL: Function = Function { name: "inet_twsk_kill", parameters: 1 };
/// Decides about a TCP `bind()` or `listen()`: `(sk, port)`; not 0 is a refusal.
pub const INET_CSK_GET_PORT: Function = Function { name: "inet_csk_get_port", parameters: 2 };
