/** What the user chose, kept in this browser. */

export type Unit = "sat" | "BTC" | "USD";
export type Theme = "auto" | "day" | "night";

export const UNITS: readonly Unit[] = ["sat", "BTC", "USD"];
const KEPT_AS = "cfdnode.settings";

class Settings {
  unit = $state<Unit>("sat");
  theme = $state<Theme>("auto");
  symbol = $state("BTCUSD");

  constructor() {
    try {
      const kept = JSON.parse(localStorage.getItem(KEPT_AS) ?? "{}") as Partial<Record<string, unknown>>;
      if (UNITS.includes(kept.unit as Unit)) this.unit = kept.unit as Unit;
      if (kept.theme === "day" || kept.theme === "night") this.theme = kept.theme;
      if (typeof kept.symbol === "string") this.symbol = kept.symbol;
    } catch {
      // nothing is kept, or nothing may be: the defaults hold
    }
  }

  choose(chosen: { unit?: Unit; theme?: Theme; symbol?: string }): void {
    Object.assign(this, chosen);
    this.apply();
    try {
      localStorage.setItem(
        KEPT_AS,
        JSON.stringify({ unit: this.unit, theme: this.theme, symbol: this.symbol }),
      );
    } catch {
      // it holds until the page is closed
    }
  }

  /** Put the theme where the style sheet looks for it; without one it follows the system. */
  apply(): void {
    const root = document.documentElement;
    if (this.theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = this.theme;
  }
}

export const settings = new Settings();
