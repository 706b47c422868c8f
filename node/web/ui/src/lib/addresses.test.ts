import { expect, test } from "vitest";
import { addressesIn, place } from "./addresses";

const ID = "ab".repeat(32);

test("several addresses of a maker are taken from a text, each once, in their order", () => {
  const [one, other] = [`${ID}@192.0.2.1:9735`, `${ID}@[2001:db8::1]:9735`];
  expect(addressesIn(` ${one}\n${other}, ${one}\n`)).toEqual([one, other]);
  expect(addressesIn(" \n")).toEqual([]);
  expect([one, other].map(place)).toEqual(["192.0.2.1:9735", "[2001:db8::1]:9735"]);
});

test.each(["nobody", `${ID}@host`, `${ID.slice(1)}@host:1`, `${ID}:1`])("what is no address is named: %s", (text) => {
  expect(() => addressesIn(`${ID}@host:1\n${text}`)).toThrow(/is no address/);
});
