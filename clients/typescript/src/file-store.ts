/** A small JSON file that keeps a program's place in the stream. */

import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { isObject } from './events.js';
import type { CursorStore, Kept } from './keeping.js';

/** The file is replaced in one step: whoever is killed while it is written finds the one before. */
export class FileStore implements CursorStore {
  constructor(readonly path: string) {}

  /**
   * What the file holds; undefined if there is none.
   *
   * @throws TypeError if it holds something else
   */
  load(): Kept | undefined {
    let text: string;
    try {
      text = readFileSync(this.path, 'utf8');
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
      throw error;
    }
    const said = parsed(text);
    if (!isObject(said) || typeof said.client_id !== 'string') throw new TypeError(`${this.path} is no cursor store`);
    return { client_id: said.client_id, cursor: said.cursor ?? undefined };
  }

  /** Write the file anew. */
  save(kept: Kept): void {
    const beside = `${this.path}.${process.pid}.new`;
    writeFileSync(beside, JSON.stringify({ client_id: kept.client_id, cursor: kept.cursor ?? null }));
    renameSync(beside, this.path);
  }
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
