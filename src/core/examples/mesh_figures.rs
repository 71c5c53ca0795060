//! Figures of simulated meshes: `cargo run --release -p meshnet-core --features sim --example mesh_figures -- 10 100 1000`.

fn main() {
    for count in std::env::args().skip(1).filter_map(|count| count.parse().ok()) {
        println!("{:#?}", meshnet_core::sim::figures::measure(1, count));
    }
}
