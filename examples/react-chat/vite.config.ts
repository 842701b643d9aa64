import react from '@vitejs/plugin-react';
import { defineConfig } from 'vite';
import { devBackend } from './dev-backend';

export default defineConfig({ plugins: [react(), devBackend()] });
