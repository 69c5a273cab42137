//! Names: which characters are allowed, and which names count as the same, both by one version of
//! Unicode. Other implementations of that version are asked about every code point.

#![allow(clippy::unwrap_used, clippy::panic)]

use icu_casemap::CaseMapper;
use patkit::token::{Description, NameError, NameKey, TokenName, UNICODE_VERSION};
use proptest::prelude::*;
use unicode_normalization::UnicodeNormalization;
use unicode_properties::{GeneralCategory as G, GeneralCategoryGroup, UnicodeGeneralCategory};

fn key(text: &str) -> NameKey {
    TokenName::new(text).unwrap().key()
}

/// Characters that look like a space without being one by category.
const LIKE_A_SPACE: [char; 8] = [
    '\u{115F}',
    '\u{1160}',
    '\u{2800}',
    '\u{3164}',
    '\u{FFA0}',
    '\u{13441}',
    '\u{13442}',
    '\u{1D159}',
];

fn is_blank(character: char) -> bool {
    character.general_category() == G::SpaceSeparator || LIKE_A_SPACE.contains(&character)
}

fn is_refused(character: char) -> bool {
    matches!(
        character.general_category(),
        G::Unassigned | G::PrivateUse | G::Control | G::LineSeparator | G::ParagraphSeparator
    ) || matches!(character, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

fn is_shown(character: char) -> bool {
    use GeneralCategoryGroup::{Letter, Number, Punctuation, Symbol};
    matches!(character.general_category_group(), Letter | Number | Punctuation | Symbol)
        && !LIKE_A_SPACE.contains(&character)
}

/// Returns `toNFKC_Casefold` as the standard defines it.
///
/// It maps each character by its full folding, drops the ignorable characters, and normalizes.
fn nfkc_casefold(text: &str) -> String {
    let mapper = CaseMapper::new();
    let once = |text: &str| -> String {
        let decomposed: String = text.nfd().filter(|&character| !is_ignorable(character)).collect();
        mapper.fold_string(&decomposed).nfkc().collect()
    };
    once(&once(text))
}

/// Returns whether `DerivedCoreProperties.txt` lists a character as ignorable.
///
/// The ranges hold the code points reserved for it, so that later versions only assign them.
fn is_ignorable(character: char) -> bool {
    [
        (0xAD, 0xAD),
        (0x34F, 0x34F),
        (0x61C, 0x61C),
        (0x115F, 0x1160),
        (0x17B4, 0x17B5),
        (0x180B, 0x180F),
        (0x200B, 0x200F),
        (0x202A, 0x202E),
        (0x2060, 0x206F),
        (0x3164, 0x3164),
        (0xFE00, 0xFE0F),
        (0xFEFF, 0xFEFF),
        (0xFFA0, 0xFFA0),
        (0xFFF0, 0xFFF8),
        (0x1BCA0, 0x1BCA3),
        (0x1D173, 0x1D17A),
        (0xE0000, 0xE0FFF_u32),
    ]
    .into_iter()
    .any(|(first, last)| (first..=last).contains(&u32::from(character)))
}

#[test]
fn every_character_is_judged_by_its_class() {
    // The other crates must have the Unicode version of the tables.
    let (major, minor, patch) = UNICODE_VERSION;
    assert_eq!(unicode_properties::UNICODE_VERSION, (major.into(), minor.into(), patch.into()));
    for character in '\0'..=char::MAX {
        let point = u32::from(character);
        let (alone, within) =
            (TokenName::new(&character.to_string()), TokenName::new(&format!("a{character}b")));
        let described = Description::new(&format!("a{character}b"));
        if is_refused(character) {
            let refused = Some(NameError::Character(character));
            assert_eq!(within.err(), refused, "{point:X}");
            assert_eq!(described.err(), refused.filter(|_| character != '\n'), "{point:X}");
            assert!(alone.is_err(), "{point:X}");
            continue;
        }
        let within = within.unwrap();
        assert!(described.unwrap().is_some());
        if is_blank(character) {
            assert_eq!(within.as_str(), "a b", "{point:X}");
        } else {
            assert_eq!(
                within.as_str(),
                format!("a{character}b").nfc().collect::<String>(),
                "{point:X}"
            );
        }
        match alone {
            Ok(name) => assert!(is_shown(character) && !name.as_str().is_empty(), "{point:X}"),
            Err(error) => assert!(!is_shown(character) && error == NameError::Empty, "{point:X}"),
        }
    }
}

#[test]
fn every_character_is_folded_by_one_version_of_unicode() {
    let mut folded = 0;
    for character in
        ('\0'..=char::MAX).filter(|character| !is_refused(*character) && !is_blank(*character))
    {
        let (text, point) = (format!("a{character}b"), u32::from(character));
        let expected = nfkc_casefold(&text);
        // A stored name is not validated, so that its key shows the folding itself.
        assert_eq!(key(&text), TokenName::stored(&expected).key(), "{point:X}: {expected:?}");
        assert_eq!(nfkc_casefold(&expected), expected, "{point:X}: folding twice is folding once");
        // Two spellings have the same key if and only if they fold to the same text.
        folded += usize::from(expected != text);
        let upper: String = text.chars().flat_map(char::to_uppercase).collect();
        let lower: String = text.chars().flat_map(char::to_lowercase).collect();
        for other in [upper, lower] {
            let same = nfkc_casefold(&other) == expected;
            assert_eq!(TokenName::stored(&other).key() == key(&text), same, "{point:X}");
        }
    }
    assert!(folded > 5_000, "{folded}");
}

/// Letters that were added after Unicode 16. Crates differ in the version that they know.
#[test]
fn letters_added_lately_fold_too() {
    let pairs = [
        ('\u{A7CE}', '\u{A7CF}'),
        ('\u{A7D2}', '\u{A7D3}'),
        ('\u{A7D4}', '\u{A7D5}'),
        ('\u{A7DD}', '\u{277}'),
        ('\u{A7E2}', '\u{27C}'),
        ('\u{AB6C}', '\u{AB4B}'),
        ('\u{16EA0}', '\u{16EBB}'),
        ('\u{16EB8}', '\u{16ED3}'),
        ('\u{1DF40}', '\u{1DF41}'),
        ('\u{1DF7E}', '\u{1DF7F}'),
    ];
    for (upper, lower) in pairs {
        assert_eq!(key(&format!("x{upper}")), key(&format!("X{lower}")), "{upper} {lower}");
    }
    assert_eq!(key("\u{1DF95}"), key("ss"));
}

#[test]
fn names_that_look_alike_by_their_blanks_are_one() {
    let blanks: Vec<char> = ('\0'..=char::MAX).filter(|character| is_blank(*character)).collect();
    assert!(blanks.len() > 20);
    for (blank, other) in blanks.iter().zip(blanks.iter().cycle().skip(3)) {
        for text in [
            format!("a{blank}b"),
            format!("a{blank}{other}b"),
            format!("{blank}{other}a {blank} {other}b{other}\n"),
            // Ignorable characters between blanks, and at either end.
            format!("a {other}\u{AD}{blank}b"),
            format!("\u{200B}{blank}a {blank}\u{2060}\u{200D} b{blank}\u{FE0F}"),
        ] {
            assert_eq!(key(&text), key("a b"), "{text:?}");
        }
        for empty in
            [format!("{blank}"), format!("{blank}{other} "), format!("\u{AD}{blank}\u{301}")]
        {
            assert_eq!(TokenName::new(&empty).err(), Some(NameError::Empty), "{empty:?}");
            assert_eq!(Description::new(&empty), Ok(None), "{empty:?}");
        }
    }
    assert_ne!(key("ab"), key("a b"));
    assert_eq!(TokenName::new("a  b").unwrap().as_str(), "a b");
    // Lines of a description keep their indentation.
    let lines = "first\n  - second  third";
    assert_eq!(Description::new(lines).unwrap().unwrap().as_str(), lines);
}

#[test]
fn what_alone_shows_nothing_is_no_name_and_does_not_show_in_one() {
    for hidden in [
        "\u{301}",
        "\u{20DD}",
        "\u{903}",
        "\u{200D}\u{FE0F}",
        "\u{AD}",
        "\u{E0041}",
        "\u{180E}",
        "\u{34F}\u{301}",
    ] {
        assert_eq!(TokenName::new(hidden).err(), Some(NameError::Empty), "{hidden:?}");
        assert_eq!(
            TokenName::new(&format!(" {hidden} ")).err(),
            Some(NameError::Empty),
            "{hidden:?}"
        );
        assert!(TokenName::new(&format!("x{hidden}")).is_ok(), "{hidden:?}");
    }
    for private in ['\u{E000}', '\u{F8FF}', '\u{F0000}', '\u{10FFFD}'] {
        for text in [private.to_string(), format!("ci {private}")] {
            assert_eq!(TokenName::new(&text).err(), Some(NameError::Character(private)));
        }
    }
    for shown in ["⠿", "☂\u{FE0F}", "👩\u{200D}💻", "न\u{92E}", "¨", "-", "가", "ㄱ", "₿"]
    {
        assert!(TokenName::new(shown).is_ok(), "{shown:?}");
    }
}

/// Bytes are counted before blanks are folded, which bounds the cost of a text of any length.
#[test]
fn a_name_is_read_up_to_sixteen_bytes_for_each_of_its_characters() {
    let spaced = |spaces: usize| TokenName::new(&format!(" a{}b\t", " ".repeat(spaces)));
    let most = 255 * 16 - "ab".len();
    for spaces in [1, 255, most - 1, most] {
        assert_eq!(spaced(spaces).unwrap().as_str(), "a b", "{spaces}");
    }
    for spaces in [most + 1, 1 << 20] {
        assert_eq!(spaced(spaces).err(), Some(NameError::TooLong { most: 255 }), "{spaces}");
    }
}

#[test]
fn stored_texts_are_not_judged() {
    for text in [
        "",
        " ",
        "a  b",
        "\u{378}",
        "\u{202E}x",
        "e\u{301}",
        "a\0b",
        &"x".repeat(10_000),
        "\u{2800}",
    ] {
        assert_eq!(TokenName::stored(text).as_str(), text);
        assert_eq!(Description::stored(text).as_str(), text);
        // The key of any text can be computed.
        assert_eq!(TokenName::stored(text).key(), TokenName::stored(text).key());
    }
}

/// Later versions look up stored names by the keys of today, so that keys must not change.
#[test]
fn keys_stay_what_they_are() {
    let hex = |name: &str| key(name).as_bytes().map(|byte| format!("{byte:02x}")).concat();
    // SHA-256 of `ci`, of `strasse` and of `a b`.
    assert_eq!(hex("CI"), "1b158839f8aa339e89bb50b1603e90ec68e0fd5565fe10a7cb32729fddf7070a");
    assert_eq!(
        hex("Stra\u{DF}e"),
        "16d96952087774fee069b7585d3991b24d90c181c09b2129b4908c35baa7f0c0"
    );
    assert_eq!(
        hex(" A\u{A0} B "),
        "c8687a08aa5d6ed2044328fa6a697ab8e96dc34291e8c2034ae8c38e6fcc6d65"
    );
    assert_eq!(NameKey::from_bytes(*key("ci").as_bytes()), key("CI"));
}

fn odd_text() -> impl Strategy<Value = String> {
    let character = prop_oneof![
        any::<char>(),
        prop::sample::select(vec![
            ' ', 'a', 'A', '\u{AD}', '\u{301}', '\u{345}', '\u{2800}', '\u{3164}', '\u{A8}',
            '\u{FDFA}', '\u{DF}', '\u{130}', '\u{1E9E}', '\u{3A3}', '\u{3C2}', '\u{FF71}',
            '\u{1100}', '\u{1161}', '\u{200D}', '\n', '\u{A0}', '\u{37A}',
        ]),
    ];
    prop::collection::vec(character, 0..20).prop_map(String::from_iter)
}

proptest! {
    #[test]
    fn a_name_is_its_own_name(text in odd_text()) {
        if let Ok(name) = TokenName::new(&text) {
            let again = TokenName::new(name.as_str()).unwrap();
            prop_assert_eq!(&again, &name);
            prop_assert_eq!(again.key(), name.key());
            prop_assert!(!name.as_str().contains("  ") && name.as_str().trim() == name.as_str());
            let folded = nfkc_casefold(name.as_str());
            prop_assert_eq!(TokenName::stored(&folded).key(), name.key());
        }
        if let Ok(Some(description)) = Description::new(&text) {
            prop_assert_eq!(Description::new(description.as_str()), Ok(Some(description)));
        }
    }
}
