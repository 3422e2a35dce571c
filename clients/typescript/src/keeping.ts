/** Where a program's place in the stream is kept over its restarts. */

/** What is kept: the name of this client, and the cursor of the last event that it has dealt with. */
export interface Kept {
  readonly client_id: string;
  readonly cursor?: string | undefined;
}

/** Keeps it: a file, a database, a browser's storage. */
export interface CursorStore {
  /** What was saved last; nothing: nothing yet. */
  load(): Kept | null | undefined | Promise<Kept | null | undefined>;
  /** Keep this instead. */
  save(kept: Kept): void | Promise<void>;
}

/** Saves in the background where the store takes its time: one at a time, always the newest. */
export class Keeping {
  #saved: Kept | undefined;
  #next: Kept | undefined;
  #saving: Promise<void> | undefined;

  /** `failed` hears of a store that fails. */
  constructor(
    readonly store: CursorStore,
    readonly failed: (error: unknown) => void,
  ) {}

  /** What was saved last. */
  async load(): Promise<Kept | undefined> {
    const kept = (await this.store.load()) ?? undefined;
    this.#saved = kept;
    return kept;
  }

  /** Keep this instead. */
  save(kept: Kept): void {
    if (kept.client_id === this.#saved?.client_id && kept.cursor === this.#saved.cursor) return;
    this.#saved = kept;
    this.#next = kept;
    if (this.#saving === undefined) this.#save();
  }

  /** Resolves when what was to be kept is. */
  async kept(): Promise<void> {
    while (this.#saving !== undefined) await this.#saving;
  }

  #save(): void {
    while (this.#next !== undefined && this.#saving === undefined) {
      const next = this.#next;
      this.#next = undefined;
      try {
        const saving = this.store.save(next);
        if (saving !== undefined) this.#saving = this.#finish(saving);
      } catch (error) {
        this.#fail(error);
      }
    }
  }

  async #finish(saving: Promise<void>): Promise<void> {
    try {
      await saving;
    } catch (error) {
      this.#fail(error);
    }
    this.#saving = undefined;
    this.#save();
  }

  #fail(error: unknown): void {
    this.#saved = undefined; // the next is tried even if it is the same
    this.failed(error);
  }
}
