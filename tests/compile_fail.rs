//! Code that must not compile, because it copies or shows a secret, or makes a proof without a
//! verification.

#[test]
fn secrets_are_not_copied_shown_compared_or_serialized_and_proofs_are_not_made() {
    trybuild::TestCases::new().compile_fail("compile_fail/*.rs");
}
