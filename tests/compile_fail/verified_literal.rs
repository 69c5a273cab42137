fn forge(token: patkit::TokenView) -> patkit::Verified {
    patkit::Verified { token, permissions: None, peer: None, at: chrono::DateTime::UNIX_EPOCH }
}

fn main() {}
