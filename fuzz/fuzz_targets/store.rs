//! Streams of operations on a shard store, judged by the model of the store's own tests.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../server/tests/store/model.rs"]
mod model;

fuzz_target!(|stream: &[u8]| {
    let mut stream = stream;
    let mut run = model::Run::new(model::Settings::read(&mut stream));
    run.follow(&mut stream);
    run.check_all();
});
