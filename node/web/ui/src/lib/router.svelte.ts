/** The part of the address behind the #: `#/positions/ab12` is the page `positions` with the argument `ab12`. */

class Router {
  #path = $state(parts());

  constructor() {
    addEventListener("hashchange", () => (this.#path = parts()));
  }

  get page(): string {
    return this.#path[0] ?? "";
  }

  get argument(): string {
    return this.#path[1] ?? "";
  }

  go(path: string): void {
    location.hash = `#/${path}`;
  }
}

function parts(): string[] {
  return location.hash.replace(/^#\/?/, "").split("/").map(decode);
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return "";
  }
}

export const router = new Router();
