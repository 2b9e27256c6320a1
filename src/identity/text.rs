//! serde for types that are read and written as text.

/// Implements `Serialize` and `Deserialize` by `Display` and `FromStr`, in every format: a text is
/// what configuration files and other implementations have. `$is_text` says whether the text has
/// all of a value.
macro_rules! serialize_as_text {
    ($type:ty, $expected:literal) => {
        crate::identity::serialize_as_text!($type, $expected, |_| true);
    };
    ($type:ty, $expected:literal, $is_text:expr) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                let is_text: fn(&Self) -> bool = $is_text;
                if !is_text(self) {
                    let reason = concat!("can not be written as ", $expected);
                    return Err(serde::ser::Error::custom(reason));
                }
                to.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                struct Text;

                impl serde::de::Visitor<'_> for Text {
                    type Value = $type;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str($expected)
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }

                from.deserialize_str(Text)
            }
        }
    };
}

pub(crate) use serialize_as_text;

#[cfg(test)]
mod tests {
    use crate::identity::PeerId;

    const PEER: &str = "12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5";

    fn round_trip<T>(text: &str)
    where
        T: std::str::FromStr<Err: std::fmt::Debug>
            + serde::Serialize
            + serde::de::DeserializeOwned
            + PartialEq
            + std::fmt::Debug,
    {
        let value: T = text.parse().expect(text);
        let json = serde_json::to_string(&value).expect("a text");
        assert_eq!(json, format!("\"{text}\""));
        assert_eq!(serde_json::from_str::<T>(&json).expect("it is"), value);
        for other in ["\"\"", "\"something else\"", "17", "null", "[]"] {
            assert!(serde_json::from_str::<T>(other).is_err(), "{other}");
        }
    }

    #[test]
    fn ids_are_text() {
        round_trip::<PeerId>(PEER);
    }

    #[cfg(feature = "transport")]
    #[test]
    fn addresses_are_text() {
        use crate::address::{PeerAddress, WebSocketAddress};
        use crate::{Address, Fingerprint};

        let hash = "uEiDDq4_xNyDorZBH3TlGazyJdOWSwvo4PUo5YHFMrvDE8g";
        let of_sdp = hash.parse::<Fingerprint>().expect("a hash").to_string();
        round_trip::<Fingerprint>(&of_sdp);
        let direct = format!("/ip4/192.0.2.1/udp/4001/webrtc-direct/certhash/{hash}/p2p/{PEER}");
        let websocket = format!("/dns/example.org/tcp/443/wss/p2p/{PEER}");
        round_trip::<Address>(&direct);
        round_trip::<WebSocketAddress>(&websocket);
        round_trip::<PeerAddress>(&direct);
        round_trip::<PeerAddress>(&websocket);
        // The path would be lost.
        let url = WebSocketAddress::from_url("wss://example.org/path").expect("a URL");
        assert!(serde_json::to_string(&url).is_err());
        assert!(serde_json::to_string(&PeerAddress::from(url)).is_err());
    }

    #[test]
    fn the_reason_of_a_refused_text_is_given() {
        let error = serde_json::from_str::<PeerId>("\"0OIl\"").expect_err("no id");
        let reason = "0OIl".parse::<PeerId>().expect_err("no id").to_string();
        assert!(error.to_string().contains(&reason), "{error}");
    }
}
