//! A few bytes that announce very much must not be believed: what a decoder reserves is bounded by what is there, not by what is said.
//!
//! Here and not beside the decoders, because counting allocations takes an allocator, and `meshnet-proto` forbids what that needs.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use meshnet_proto::codec;
use meshnet_proto::limits;
use meshnet_proto::wire::control::Control;
use meshnet_proto::wire::record::SignedRecord;

thread_local! {
    static NOW: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, counting bytes by thread.
struct Counting;

// SAFETY: every call goes to `System` with the arguments as they came; counting touches only thread-local cells that need neither memory nor a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.get().saturating_add(layout.size());
        NOW.set(now);
        PEAK.set(PEAK.get().max(now));
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        NOW.set(NOW.get().saturating_sub(layout.size()));
        // SAFETY: `block` came from `System` with this layout, by `alloc` above.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The most that `work` held at a time, in kibibytes.
fn growth(work: impl FnOnce()) -> usize {
    let before = NOW.get();
    PEAK.set(before);
    work();
    (PEAK.get() - before) / 1024
}

fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], body].concat()
}

#[test]
fn announced_lengths_are_not_believed() {
    // That the measure sees it when somebody does believe them:
    assert_eq!(growth(|| drop(std::hint::black_box(Vec::<u8>::with_capacity(3 << 20)))), 3 << 10);

    let counts: [&[u8]; 4] = [
        &[0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        &[0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
        &[0xfc, 0xff, 0xff, 0xff, 0x7f],
        &[0xfc, 0x00, 0x00, 0x04, 0x00],
    ];
    for count in counts {
        let nested = [&[1], count].concat();
        let grown = growth(|| {
            for kind in 0..12 {
                assert!(Control::parse(&message(kind, count)).is_err() || matches!(kind, 0 | 3 | 9 | 10 | 11));
                let _ = Control::parse(&message(kind, &nested));
            }
            assert!(codec::decode::<Vec<u8>>(count).is_err());
            assert!(codec::decode::<String>(count).is_err());
            assert!(codec::decode::<Vec<u64>>(count).is_err());
            assert!(codec::decode::<Vec<Vec<u8>>>(count).is_err());
            assert!(codec::decode::<Vec<Vec<u8>>>(&nested).is_err());
            assert!(codec::decode::<Vec<Vec<Vec<String>>>>(&[&[1, 1], count].concat()).is_err());
            assert!(codec::decode::<Vec<(u16, Vec<u8>)>>(&[&[1, 0], count].concat()).is_err());
        });
        assert!(grown <= 2 << 10, "{count:02x?}: {grown} KiB");
    }

    // A record whose every length in turn is a lie.
    let grown = growth(|| {
        for name in 35..60 {
            let mut record = vec![0; 64 + 80];
            record.splice(64 + name..64 + name + 1, counts[0].iter().copied());
            let _ = SignedRecord::parse(&record);
        }
    });
    assert!(grown <= 2 << 10, "records: {grown} KiB");

    // The longest messages of the tiniest elements: as many as the limits say, whatever fits.
    let tiny = |count: usize| {
        let body = [&[0xfc][..], &(count as u32).to_le_bytes(), &vec![0; count]].concat();
        [2, 4, 6].map(|kind| message(kind, &body))
    };
    let most = tiny(limits::MESSAGE_MAX_BYTES - 16);
    let grown = growth(|| most.iter().for_each(|bytes| drop(Control::parse(bytes).unwrap_err())));
    assert!(grown <= 64, "{grown} KiB for messages of {} bytes", limits::MESSAGE_MAX_BYTES);
}
