fn forge(verified: patkit::Verified) -> patkit::Verified {
    patkit::Verified { at: 0, ..verified }
}

fn main() {}
