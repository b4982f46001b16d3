//! Coverage-guided fuzzing of the user-mode network: `LAYER=tcp fuzz-user CORPUS...` with libFuzzer's options.
//!
//! An input is a play (play.rs): frames of a guest, time that passes, what the far end does. Each mutation is repaired
//! (repair.rs) so far that it reaches its layer: the headers before it are right, and so are the checksums.
#![no_main]

mod play;
mod repair;

use std::sync::OnceLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use repair::Layer;

fn layer() -> Layer {
    static LAYER: OnceLock<Layer> = OnceLock::new();
    *LAYER.get_or_init(|| {
        play::leave_the_world();
        let name = std::env::var("LAYER").unwrap_or_default();
        Layer::named(&name).unwrap_or_else(|| panic!("LAYER={name}: none of {}", Layer::names().join(" ")))
    })
}

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, _seed: u32| {
    let size = fuzzer_mutate(data, size, max_size);
    repair::repair(layer(), &mut data[..size]);
    size
});

fuzz_target!(|data: &[u8]| {
    layer();
    play::play(data);
});
