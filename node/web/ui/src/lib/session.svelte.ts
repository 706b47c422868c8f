/** Whether this browser is signed in at the node. */

import { ApiError, del, get, post } from "./api";

interface Told {
  signed_in: boolean;
  by: "password" | "token" | null;
  password_set: boolean;
}

class Session {
  /** `unknown` until the node was asked. */
  state = $state<"unknown" | "in" | "out">("unknown");
  by = $state<Told["by"]>(null);
  passwordSet = $state(false);

  /** Ask the node. One that does not answer leaves what is known. */
  async look(): Promise<void> {
    try {
      this.#know(await get<Told>("session"));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
    }
  }

  /** Raises `ApiError`: a wrong one, or too many attempts. */
  async signIn(by: "password" | "token", secret: string): Promise<void> {
    await post("session", { [by]: secret });
    await this.look();
  }

  async signOut(): Promise<void> {
    await del("session");
    this.ended();
  }

  /** The node said that it does not know us. */
  ended(): void {
    this.state = "out";
    this.by = null;
  }

  #know(told: Told): void {
    this.state = told.signed_in ? "in" : "out";
    this.by = told.by;
    this.passwordSet = told.password_set;
  }
}

export const session = new Session();
