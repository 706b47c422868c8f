/** What `Confirm` asks. */
export interface Question {
  title: string;
  consequence: string;
  /** The button that does it. */
  action: string;
  danger?: boolean;
  run: () => Promise<unknown>;
}
