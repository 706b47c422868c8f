/** Addresses of makers, as people paste them. */

/** Each address in the text, apart by spaces, commas or lines; raises an Error that names what is none.
 *
 * All are looked at before the first is sent: half of a list is worse than none. The node looks closer. */
export function addressesIn(text: string): string[] {
  const found = [...new Set(text.split(/[\s,;]+/).filter((each) => each !== ""))];
  for (const each of found)
    if (!/^[0-9a-f]{64}@.+:[0-9]{1,5}$/i.test(each))
      throw new Error(`${short(each)} is no address: 64 hex digits, @, host and port`);
  return found;
}

/** Without the identity, where that stands beside it. */
export function place(address: string): string {
  return address.slice(address.indexOf("@") + 1);
}

function short(text: string): string {
  return text.length > 40 ? `${text.slice(0, 40)}…` : text;
}
