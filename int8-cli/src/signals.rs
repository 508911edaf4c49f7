//! A file that is cut short while it is mapped raises SIGBUS on the next read: an error that names the file, and an end, instead of
//! "Bus error". And a panic of a library that is contained is not printed.
#![allow(
    unsafe_code,
    reason = "the system has no other way to handle a signal; each call cites its contract"
)]

/// Installs the handler and the hook.
pub(crate) fn install() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        // `int8_nn::Tokenizer` turns panics of the tokenizers library into errors.
        let contained = ["tokenizers-", "spm_precompiled-", "fancy-regex-", "daachorse-"];
        let place = info.location().map_or("", |location| location.file());
        if !contained.iter().any(|library| place.contains(library)) {
            default(info);
        }
    }));
    #[cfg(unix)]
    unix::install();
}

#[cfg(unix)]
mod unix {
    use std::ptr;

    pub(super) fn install() {
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_bus_error;
        // SAFETY: `sigaction` is plain data, for which zeros are valid; the set it holds is initialised by `sigemptyset`, and the
        // handler has the signature that SA_SIGINFO asks for and keeps to functions that are safe in a handler.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as libc::sighandler_t;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&raw mut action.sa_mask);
            // Without the handler the signal ends the program as before.
            libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut());
        }
    }

    extern "C" fn on_bus_error(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: the system passes a valid `siginfo_t` for SA_SIGINFO, and SIGBUS has an address.
        let address = unsafe { (*info).si_addr() }.addr();
        int8_nn::checkpoint::mapped_file_at(address, &mut |file| {
            write(b"\nerror: ");
            // Control characters would reach the terminal.
            for part in file.as_bytes().split(u8::is_ascii_control) {
                write(part);
            }
            write(
                b": cannot be read: it was cut short while it was in use, or its disk fails\n\
                hint: copy or download the file again, and do not change it while a command reads it\n",
            );
            // SAFETY: ends the process at once, and is safe in a handler.
            unsafe { libc::_exit(1) }
        });
        // Not a file of a checkpoint: the default, when the access is repeated.
        // SAFETY: `signal` is safe in a handler, and SIG_DFL a valid action.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }

    fn write(bytes: &[u8]) {
        // SAFETY: `write` is safe in a handler; pointer and length are those of a slice.
        unsafe { libc::write(libc::STDERR_FILENO, bytes.as_ptr().cast(), bytes.len()) };
    }
}
