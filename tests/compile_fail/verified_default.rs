fn forge() -> patkit::Verified {
    Default::default()
}

fn main() {}
